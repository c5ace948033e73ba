//! A node's place among the voters: its own voter, and what it asks the other two.
//!
//! - *Vote*: the own voter is asked first whether it would agree, and agrees with nobody else
//!   meanwhile; then the others; with the first yes its own vote is stored. The reign begins
//!   there. Asking in this order keeps a candidate without a majority from deposing anybody.
//! - *Lease*: renewed every [`SeatConfig::beat`] at both others. It lasts from the moment at which
//!   a question left that was answered with yes, for [`Lease::length`]; completions pass until
//!   [`Lease::margin`] before its end ([`Seat::serves_until`]).
//! - *Record*: a new generation counts when another voter and this one have it.
//! - A later reign that any answer names ends the own one: [`Output::Deposed`]. While the own lease
//!   lasts no majority can have given it, and what is named is the vote of one voter for a candidate
//!   that got no other: it counts when the lease is over.
//!
//! Every question is sent anew until it is answered; only the answer to the last one counts. A
//! voter that has just started is asked again at once: only then it knows that the word is new.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::voter::{
    Answer, Ballot, Copy, Data, Denied, Known, Lease, Question, Record, Seen, Voter, VoterConfig,
};
use crate::engine::{Generation, NodeId, Term, Time, VolumeId, Vote};

/// Another voter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Other {
    Peer,
    Third,
}

impl Other {
    pub const BOTH: [Other; 2] = [Other::Peer, Other::Third];

    fn index(self) -> usize {
        self as usize
    }
}

/// What a seat is set up with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SeatConfig {
    pub me: NodeId,
    pub peer: NodeId,
    pub lease: Lease,
    /// Between two renewals, and two greetings of a node that does not reign.
    pub beat: Duration,
    /// After this long a question is put again.
    pub retry: Duration,
    /// How long a candidate waits for a voter that says nothing.
    pub patience: Duration,
}

impl SeatConfig {
    fn voter(&self) -> VoterConfig {
        VoterConfig {
            nodes: [self.me, self.peer],
            lease: self.lease,
        }
    }
}

/// What a node keeps durably.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Memory {
    pub record: Record,
    /// How far the other voters' stores were: the peer's, the third's.
    pub seen: [Option<Seen>; 2],
}

impl Memory {
    /// Of a node that has none.
    pub fn blank(store: u64) -> Memory {
        Memory {
            record: Record::blank(store),
            seen: [None; 2],
        }
    }
}

pub enum Input {
    /// Time has passed.
    Tick,
    /// The peer asks this node's voter.
    Asked {
        id: u64,
        known: Known,
        question: Question,
    },
    Answered {
        from: Other,
        id: u64,
        answer: Answer,
    },
    /// This node wants to reign. `random` tells its term from every other.
    Vote {
        again: Option<Term>,
        copies: Vec<Copy>,
        force: bool,
        random: u32,
    },
    /// The data plane wants a generation recorded under its term.
    Record {
        volume: VolumeId,
        generation: Generation,
        term: Term,
    },
    /// What the data plane's own record says about the last reign.
    Reigned { term: Term },
    /// The data plane reigns under `term`, and this is an agent that has just started: the first
    /// input, because whoever says nothing of a lease has none.
    Resume { term: Term },
    /// This node does not reign any more.
    Release,
    /// What [`Output::Store`] gave with this number is durable.
    Stored { version: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    Ask {
        to: Other,
        id: u64,
        known: Known,
        question: Question,
    },
    /// The answer to the peer's question.
    Reply {
        id: u64,
        answer: Answer,
    },
    Store {
        version: u64,
        memory: Memory,
    },
    /// The reign begins; `force` as it was asked.
    Voted {
        force: bool,
        vote: Vote,
    },
    Denied(Denied),
    Recorded {
        volume: VolumeId,
        generation: Generation,
    },
    /// This reign is another's.
    Deposed {
        term: Term,
    },
}

/// A question on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Asked {
    id: u64,
    at: Time,
    question: Question,
}

/// What is known of another voter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct View {
    asked: Option<Asked>,
    /// When the last answer came, and the question left that it answered.
    answered: Option<Time>,
    /// When the last question left that was answered with yes under this node's reign.
    confirmed: Option<Time>,
    /// What it has on record about the data.
    data: Option<Data>,
    denied: Option<Denied>,
    /// It has just started and is asked again at once.
    eager: bool,
}

/// This node is a candidate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Candidacy {
    ballot: Ballot,
    until: Time,
    stage: Stage,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Stage {
    /// The others are asked.
    Asking,
    /// Two votes are there; this node's own is being stored, and what is on record is this.
    Storing { version: u64, recorded: Data },
    /// A copy that descends from the recorded one is put on record before it is used.
    Recording { recorded: Data },
}

/// A record that the data plane waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Wanted {
    volume: VolumeId,
    generation: Generation,
    /// Another voter has it; this one has with that version.
    version: Option<u64>,
}

/// See the module's description.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Seat {
    config: SeatConfig,
    own: Voter,
    seen: [Option<Seen>; 2],
    views: [View; 2],
    reign: Option<Term>,
    candidacy: Option<Candidacy>,
    wanted: VecDeque<Wanted>,
    releasing: Option<Release>,
    /// The latest reign that anybody has named.
    horizon: Term,
    next_id: u64,
    /// Versions of the memory: made, and durable.
    version: u64,
    stored: u64,
    /// Answers that leave when this version is durable.
    replies: VecDeque<(u64, u64, Answer)>,
}

/// A reign that has ended in order, until the others know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Release {
    term: Term,
    until: Time,
    told: [bool; 2],
}

impl Seat {
    /// The seat of a node that starts with what it has stored; `blank`: it had nothing.
    pub fn start(config: SeatConfig, memory: Memory, blank: bool, now: Time) -> Seat {
        let own = Voter::start(config.voter(), memory.record, blank, now);
        Seat {
            horizon: own.record().term,
            own,
            seen: memory.seen,
            views: Default::default(),
            reign: None,
            candidacy: None,
            wanted: VecDeque::new(),
            releasing: None,
            // Answers to an earlier life of this node may still be on their way.
            next_id: now.0,
            version: 0,
            stored: 0,
            replies: VecDeque::new(),
            config,
        }
    }

    /// The same seat with a deliberate defect of its voter; only in the simulator.
    #[cfg(feature = "sabotage")]
    pub fn sabotaged(mut self, defect: Option<crate::engine::Sabotage>) -> Seat {
        self.own = self.own.sabotaged(defect);
        self
    }

    /// The reign of this node, whether its lease lasts or not.
    pub fn reign(&self) -> Option<Term> {
        self.reign
    }

    /// A vote is being asked for.
    pub fn asking(&self) -> bool {
        self.candidacy.is_some()
    }

    /// The own voter's record.
    pub fn record(&self) -> &Record {
        self.own.record()
    }

    /// The own voter's memory is lost or old, and nobody has told it enough yet.
    pub fn doubts(&self) -> bool {
        self.own.doubts()
    }

    /// When this voter last answered, if ever.
    pub fn heard(&self, other: Other) -> Option<Time> {
        self.views[other.index()].answered
    }

    /// Why this voter last said no.
    pub fn denied(&self, other: Other) -> Option<Denied> {
        self.views[other.index()].denied
    }

    /// Until when no other node can have been given a vote: the end of the lease.
    pub fn lease_end(&self) -> Option<Time> {
        self.reign?;
        let confirmed = self.views.iter().filter_map(|view| view.confirmed).max()?;
        Some(confirmed.after(self.config.lease.length))
    }

    /// Until when completions pass: from the beginning of a reign, not from its votes.
    pub fn serves_until(&self) -> Option<Time> {
        match &self.candidacy {
            Some(candidacy) if candidacy.stage != Stage::Asking => None,
            _ => Some(self.usable(self.lease_end()?)),
        }
    }

    /// The end of a lease less the margin.
    fn usable(&self, end: Time) -> Time {
        let margin = self.config.lease.margin.as_nanos() as u64;
        Time(end.0.saturating_sub(margin))
    }

    /// Whether what these voters have last confirmed keeps others from reigning.
    fn leased(&self, now: Time, views: &[View]) -> bool {
        let confirmed = views.iter().filter_map(|view| view.confirmed).max();
        let end = confirmed.map(|at| at.after(self.config.lease.length));
        self.reign.is_some() && end.is_some_and(|end| now < self.usable(end))
    }

    /// Takes an input; what follows from it is appended to `out`.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Tick => {}
            Input::Asked {
                id,
                known,
                question,
            } => self.asked(now, id, &known, &question, out),
            Input::Answered { from, id, answer } => self.answered(now, from, id, answer, out),
            Input::Vote {
                again,
                copies,
                force,
                random,
            } => self.stand(now, (again, copies, force), random, out),
            Input::Record {
                volume,
                generation,
                term,
            } => self.want(volume, generation, term, out),
            Input::Reigned { term } => self.horizon = self.horizon.max(term),
            Input::Resume { term } => self.resume(now, term),
            Input::Release => self.release(now),
            Input::Stored { version } => self.stored = self.stored.max(version),
        }
        self.go_on(now, out);
    }

    // ---- the own voter ----

    fn known(&self, now: Time, other: Other) -> Known {
        let (record, index) = (self.own.record(), other.index());
        Known {
            term: record.term,
            data: record.data.clone(),
            seen: self.seen[index],
            leased: self.leased(now, &self.views[index..=index]),
        }
    }

    /// Gives the memory its next version, to be stored.
    fn store(&mut self, out: &mut Vec<Output>) {
        self.version += 1;
        out.push(Output::Store {
            version: self.version,
            memory: Memory {
                record: self.own.record().clone(),
                seen: self.seen,
            },
        });
    }

    /// The own voter answers this node.
    fn ask_own(&mut self, now: Time, question: &Question, out: &mut Vec<Output>) -> Answer {
        let record = self.own.record();
        let known = Known {
            term: record.term,
            data: record.data.clone(),
            seen: Some(self.own.seen()),
            leased: self.leased(now, &self.views),
        };
        let (answer, changed) = self.own.handle(now, self.config.me, &known, question);
        if changed {
            self.store(out);
        }
        answer
    }

    fn asked(
        &mut self,
        now: Time,
        id: u64,
        known: &Known,
        question: &Question,
        out: &mut Vec<Output>,
    ) {
        // A candidate has promised itself not to help another meanwhile.
        let helps = !matches!(question, Question::Hello | Question::Release { .. });
        let blocked = helps && self.candidacy.is_some();
        let heard = if blocked { &Question::Hello } else { question };
        let (mut answer, changed) = self.own.handle(now, self.config.peer, known, heard);
        if blocked {
            answer.result = Err(Denied::Candidate);
        }
        if changed {
            self.store(out);
        }
        self.replies.push_back((self.version, id, answer));
        self.learn(now, self.own.record().term, out);
    }

    // ---- what others say ----

    fn answered(&mut self, now: Time, from: Other, id: u64, answer: Answer, out: &mut Vec<Output>) {
        let index = from.index();
        let Some(asked) = self.views[index].asked.take_if(|asked| asked.id == id) else {
            return;
        };
        let view = &mut self.views[index];
        view.answered = Some(now);
        view.data = Some(answer.data.clone());
        let before = self.seen[index].replace(answer.seen);
        let news = before != Some(answer.seen);
        view.eager = before.is_none_or(|seen| seen.started != answer.seen.started);
        view.denied = answer.result.err().filter(|_| !view.eager);
        // A vote for this node is stored when it has counted the votes, and one for another while
        // the lease lasts stands alone.
        let alone = answer.term.node == self.config.me || self.leased(now, &self.views);
        let term = if alone { Term::ZERO } else { answer.term };
        if self.own.hear(now, term, &answer.data) || news {
            self.store(out);
        }
        self.learn(now, answer.term, out);
        match (&asked.question, answer.result) {
            (Question::Vote(ballot), Ok(())) => self.voted(now, from, asked.at, ballot.term, out),
            (Question::Renew { term }, Ok(())) => self.confirm(from, asked.at, *term),
            (Question::Record { term, data }, Ok(())) => {
                self.confirm(from, asked.at, *term);
                self.recorded(now, *term, data, out);
            }
            (Question::Release { .. }, _) => {
                if let Some(release) = &mut self.releasing {
                    release.told[index] = true;
                }
            }
            (Question::Hello, _) | (_, Err(_)) => {}
        }
    }

    /// Somebody names a reign.
    fn learn(&mut self, now: Time, term: Term, out: &mut Vec<Output>) {
        self.horizon = self.horizon.max(term);
        self.settle_reign(now, out);
    }

    /// Ends the reign when a later one may have begun.
    fn settle_reign(&mut self, now: Time, out: &mut Vec<Output>) {
        let term = self.horizon;
        // A vote for this node's next reign deposes nobody.
        let asked = self.candidacy.as_ref().map(|c| c.ballot.term);
        let later = self.reign.is_some_and(|reign| term > reign);
        if later && asked != Some(term) && !self.leased(now, &self.views) {
            self.end_reign();
            out.push(Output::Deposed { term });
        }
    }

    fn end_reign(&mut self) {
        self.reign = None;
        self.wanted.clear();
        for view in &mut self.views {
            view.confirmed = None;
        }
    }

    fn confirm(&mut self, from: Other, at: Time, term: Term) {
        if self.reign != Some(term) {
            return;
        }
        let view = &mut self.views[from.index()];
        view.confirmed = view.confirmed.max(Some(at));
        if let Some(end) = self.lease_end() {
            self.own.extend(end);
        }
    }

    // ---- the vote ----

    fn stand(
        &mut self,
        now: Time,
        (again, copies, force): (Option<Term>, Vec<Copy>, bool),
        random: u32,
        out: &mut Vec<Output>,
    ) {
        if self.candidacy.is_some() {
            return out.push(Output::Denied(Denied::Candidate));
        }
        let known = self.horizon.max(self.own.record().term);
        let ballot = Ballot {
            term: Term {
                counter: known.counter + 1,
                node: self.config.me,
                random,
            },
            again,
            copies,
            force,
        };
        // It may have settled since it was last asked.
        self.ask_own(now, &Question::Hello, out);
        if let Err(denied) = self.own.check(now, self.config.me, &ballot) {
            return out.push(Output::Denied(denied));
        }
        for view in &mut self.views {
            view.asked = None;
            view.denied = None;
        }
        self.candidacy = Some(Candidacy {
            ballot,
            until: now.after(self.config.patience),
            stage: Stage::Asking,
        });
    }

    /// Another voter says yes: with this node's own vote these are two.
    fn voted(&mut self, now: Time, from: Other, at: Time, term: Term, out: &mut Vec<Output>) {
        let Some(candidacy) = self.candidacy.take_if(|c| c.ballot.term == term) else {
            return self.confirm(from, at, term);
        };
        if candidacy.stage != Stage::Asking {
            self.candidacy = Some(candidacy);
            return self.confirm(from, at, term);
        }
        let question = Question::Vote(candidacy.ballot.clone());
        let answer = self.ask_own(now, &question, out);
        if let Err(denied) = answer.result {
            return out.push(Output::Denied(denied));
        }
        if !self.wanted.is_empty() && candidacy.ballot.again.is_none() {
            // Nobody answers any more what was asked under the reign before.
            out.push(Output::Deposed { term });
        }
        self.end_reign();
        self.reign = Some(term);
        self.horizon = self.horizon.max(term);
        self.confirm(from, at, term);
        self.candidacy = Some(Candidacy {
            stage: Stage::Storing {
                version: self.version,
                recorded: answer.data,
            },
            ..candidacy
        });
    }

    /// Moves a candidacy on that waits for nobody's answer.
    fn settle_candidacy(&mut self, now: Time, out: &mut Vec<Output>) {
        let Some(mut candidacy) = self.candidacy.take() else {
            return;
        };
        match &candidacy.stage {
            Stage::Asking => {
                let denials = self.views.iter().filter_map(|view| view.denied);
                if denials.clone().count() == 2 || candidacy.until <= now {
                    let denied = denials.max_by_key(weight).unwrap_or(Denied::Silence);
                    return out.push(Output::Denied(denied));
                }
            }
            Stage::Storing { version, recorded } if *version <= self.stored => {
                let Some(descended) = descended(&candidacy.ballot, recorded) else {
                    return self.begin(&candidacy.ballot, &recorded.generations, out);
                };
                candidacy.stage = Stage::Recording {
                    recorded: descended,
                };
                for view in &mut self.views {
                    view.asked = None;
                }
            }
            Stage::Storing { .. } => {}
            // The lease is over, and with it the patience of whoever asked.
            Stage::Recording { .. } if !self.leased(now, &self.views) => {
                self.release(now);
                return out.push(Output::Denied(Denied::Silence));
            }
            Stage::Recording { recorded } => {
                if self.own.record().data.version() >= recorded.version() {
                    let done = self.stored == self.version;
                    if done {
                        return self.begin(&candidacy.ballot, &recorded.generations, out);
                    }
                }
            }
        }
        self.candidacy = Some(candidacy);
    }

    /// The reign begins.
    fn begin(
        &mut self,
        ballot: &Ballot,
        recorded: &std::collections::BTreeMap<VolumeId, Generation>,
        out: &mut Vec<Output>,
    ) {
        let recorded = |copy: &Copy| recorded.get(&copy.volume).copied();
        out.push(Output::Voted {
            force: ballot.force,
            vote: Vote {
                term: ballot.term,
                recorded: ballot.copies.iter().map(recorded).collect(),
            },
        });
    }

    // ---- records ----

    fn want(
        &mut self,
        volume: VolumeId,
        generation: Generation,
        term: Term,
        out: &mut Vec<Output>,
    ) {
        match self.reign {
            Some(reign) if reign == term => self.wanted.push_back(Wanted {
                volume,
                generation,
                version: None,
            }),
            _ if self.horizon > term => out.push(Output::Deposed { term: self.horizon }),
            // An earlier reign of this node that nobody has followed; its data plane is told when
            // somebody has.
            _ => {}
        }
    }

    /// The data as it would be with the first record that is wanted.
    fn next_data(&self) -> Option<Data> {
        let reign = self.reign?;
        if let Some(Candidacy {
            stage: Stage::Recording { recorded },
            ..
        }) = &self.candidacy
        {
            return Some(recorded.clone());
        }
        let mut data = self.own.record().data.clone();
        match self.wanted.front() {
            Some(wanted) if wanted.version.is_none() => {
                data.generations.insert(wanted.volume, wanted.generation);
            }
            Some(_) => return None,
            None if self.disputed() => {}
            None => return None,
        }
        let versions = self.views.iter().filter_map(|view| view.data.as_ref());
        let versions = versions.map(Data::version).chain([data.version()]);
        let counts = versions.filter_map(|(term, count)| (term == reign).then_some(count));
        data.count = counts.max().unwrap_or(0) + 1;
        data.term = reign;
        Some(data)
    }

    /// An earlier life of this agent has put something else on record in the same place.
    fn disputed(&self) -> bool {
        let own = &self.own.record().data;
        let others = self.views.iter().filter_map(|view| view.data.as_ref());
        others
            .filter(|data| data.version() == own.version())
            .any(|data| data != own)
    }

    /// Another voter has it on record: now the own one takes it, too.
    fn recorded(&mut self, now: Time, term: Term, data: &Data, out: &mut Vec<Output>) {
        if self.reign != Some(term) {
            return;
        }
        let question = Question::Record {
            term,
            data: data.clone(),
        };
        if self.ask_own(now, &question, out).result.is_err() {
            // It has just started itself: the question is put again.
            return;
        }
        let version = self.version;
        if let Some(wanted) = self.wanted.front_mut()
            && wanted.version.is_none()
            && data.generations.get(&wanted.volume) == Some(&wanted.generation)
        {
            wanted.version = Some(version);
        }
    }

    fn settle_records(&mut self, out: &mut Vec<Output>) {
        let durable = |wanted: &mut Wanted| wanted.version.is_some_and(|v| v <= self.stored);
        while let Some(done) = self.wanted.pop_front_if(durable) {
            out.push(Output::Recorded {
                volume: done.volume,
                generation: done.generation,
            });
        }
    }

    // ---- begin and end ----

    fn resume(&mut self, now: Time, term: Term) {
        let later = self.horizon > term;
        if term.node == self.config.me && !later && self.reign.is_none() {
            self.reign = Some(term);
            self.horizon = term;
            self.own.hear(now, term, &Record::blank(0).data);
            // What the data plane has been told by an earlier life of this agent may last.
            self.own.extend(now.after(self.config.lease.length));
        }
    }

    fn release(&mut self, now: Time) {
        let Some(term) = self.reign else { return };
        self.end_reign();
        self.own.end_lease(now);
        self.releasing = Some(Release {
            term,
            until: now.after(self.config.lease.length),
            told: [false; 2],
        });
        for view in &mut self.views {
            view.asked = None;
        }
    }

    // ---- questions ----

    fn go_on(&mut self, now: Time, out: &mut Vec<Output>) {
        self.ask_own(now, &Question::Hello, out);
        if self
            .releasing
            .is_some_and(|r| r.until <= now || r.told == [true; 2])
        {
            self.releasing = None;
        }
        self.settle_reign(now, out);
        self.settle_candidacy(now, out);
        self.settle_records(out);
        while let Some((_, id, answer)) = self.replies.pop_front_if(|(v, ..)| *v <= self.stored) {
            out.push(Output::Reply { id, answer });
        }
        for other in Other::BOTH {
            self.put(now, other, out);
        }
    }

    /// When something is due without news.
    pub fn next_deadline(&self) -> Option<Time> {
        let question = self.views.iter().filter_map(|view| self.due(view));
        let asking = self.candidacy.iter().filter(|c| c.stage == Stage::Asking);
        let candidacy = asking.map(|c| c.until);
        question.chain(candidacy).min()
    }

    /// When this voter is asked next, unless something urgent comes.
    fn due(&self, view: &View) -> Option<Time> {
        match &view.asked {
            Some(asked) => Some(asked.at.after(self.config.retry)),
            None if view.eager => Some(Time(0)),
            None => Some(
                view.answered
                    .map_or(Time(0), |at| at.after(self.config.beat)),
            ),
        }
    }

    fn put(&mut self, now: Time, other: Other, out: &mut Vec<Output>) {
        let index = other.index();
        let (question, urgent) = self.question(other);
        let view = &self.views[index];
        let late = self.due(view).is_none_or(|at| at <= now);
        let replaces = view.asked.as_ref().is_none_or(|a| a.question != question);
        if !(late || urgent && replaces) {
            return;
        }
        self.next_id += 1;
        let id = self.next_id;
        self.views[index].eager = false;
        self.views[index].asked = Some(Asked {
            id,
            at: now,
            question: question.clone(),
        });
        out.push(Output::Ask {
            to: other,
            id,
            known: self.known(now, other),
            question,
        });
    }

    /// What this voter is to be asked, and whether that cannot wait for the next beat.
    fn question(&self, other: Other) -> (Question, bool) {
        let view = &self.views[other.index()];
        if let Some(candidacy) = &self.candidacy
            && candidacy.stage == Stage::Asking
        {
            let open = view.denied.is_none();
            return (Question::Vote(candidacy.ballot.clone()), open);
        }
        if let Some(term) = self.reign {
            if let Some(data) = self.next_data() {
                return (Question::Record { term, data }, view.denied.is_none());
            }
            let data = &self.own.record().data;
            let behind = |theirs: &Data| theirs.version() < data.version();
            if view.data.as_ref().is_some_and(behind) {
                // It was away when this was recorded.
                let data = data.clone();
                return (Question::Record { term, data }, false);
            }
            return (Question::Renew { term }, false);
        }
        match self.releasing {
            Some(release) if !release.told[other.index()] => {
                (Question::Release { term: release.term }, true)
            }
            _ => (Question::Hello, false),
        }
    }
}

/// What should be on record because a copy descends from the recorded one.
fn descended(ballot: &Ballot, recorded: &Data) -> Option<Data> {
    let mut data = recorded.clone();
    for copy in &ballot.copies {
        if let Some(on_record) = data.generations.get_mut(&copy.volume)
            && copy.descends(*on_record)
        {
            *on_record = copy.current;
        }
    }
    (data.generations != recorded.generations).then_some(Data {
        term: ballot.term,
        count: 1,
        ..data
    })
}

/// Which of two denials says more.
fn weight(denied: &Denied) -> u8 {
    match denied {
        Denied::Silence | Denied::Stranger => 0,
        Denied::Candidate => 1,
        Denied::Starting { .. } => 2,
        Denied::Doubt => 3,
        Denied::Held { .. } => 4,
        Denied::Stale { .. } => 5,
        Denied::Behind | Denied::NotRecorded => 6,
        Denied::Overtaken => 7,
    }
}
