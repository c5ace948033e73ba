//! Front ends: applications get to work while their node serves, and requests find the next data
//! plane.

use lockstep::engine::{Event, Op, Span, VolumeId};

use crate::disk::{SECTOR, ZERO};
use crate::node::{Request, Wish};
use crate::oracle::Outcome;
use crate::world::{Happening, World};

impl World {
    pub fn serve(&mut self, node: usize, serve: bool) {
        let leased = self.leased(node);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process.opens = serve && !leased;
        if process.opens {
            return;
        }
        let was = std::mem::replace(&mut process.serving, serve);
        if !serve || was {
            return;
        }
        process.status = process.engine.status();
        self.check_promotion(node);
        self.check_lease();
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        process.forced = std::mem::take(&mut process.forcing);
        self.nodes[node].recover_role = false;
        self.nodes[node].forced.clear();
        self.wake_clients(node);
        self.abandon(1 - node);
        self.reissue(node);
    }

    /// Lets the applications of a serving node go to work; they stop when their requests are used
    /// up.
    pub fn wake_clients(&mut self, node: usize) {
        if !self.nodes[node].serving() {
            return;
        }
        let incarnation = self.nodes[node].incarnations;
        for volume in 0..self.plan.volumes {
            self.wake_client(node, volume, incarnation);
        }
    }

    fn wake_client(&mut self, node: usize, volume: usize, incarnation: u32) {
        let pause = self.clients[node][volume].pause();
        let client = Happening::Client {
            node,
            volume,
            incarnation,
        };
        self.schedule.after(pause, client);
    }

    /// Requests that a dead data plane left behind will never be answered.
    pub fn abandon(&mut self, node: usize) {
        for request in std::mem::take(&mut self.nodes[node].orphans) {
            if let Some(id) = request.write {
                self.oracle.end(id, Outcome::Unknown);
            }
        }
    }

    fn reissue(&mut self, node: usize) {
        for mut request in std::mem::take(&mut self.nodes[node].orphans) {
            if let Some(id) = request.write {
                self.oracle.resubmit(id, node);
            }
            request.submitted = self.oracle.tick();
            self.hand_in(node, request);
        }
    }

    pub fn client(&mut self, node: usize, volume: usize, incarnation: u32) {
        if !self.is(node, incarnation) || !self.nodes[node].serving() || self.requests_left == 0 {
            return;
        }
        self.wake_client(node, volume, incarnation);
        let client = &mut self.clients[node][volume];
        let Some(process) = &self.nodes[node].process else {
            return;
        };
        let open = process
            .requests
            .values()
            .filter(|r| r.volume == volume)
            .count();
        if open >= client.in_flight_max {
            return;
        }
        let ask = client.ask();
        self.requests_left -= 1;
        let (start, count) = (ask.start, ask.count);
        let write = match ask.wish {
            Wish::Write { fua } => Some(self.oracle.submit(node, volume, start, count, false, fua)),
            Wish::Zeroes { fua, .. } => {
                Some(self.oracle.submit(node, volume, start, count, true, fua))
            }
            Wish::Discard => Some(self.oracle.submit(node, volume, start, count, true, false)),
            Wish::Read | Wish::Flush => None,
        };
        let stamp = write.map_or(ZERO, crate::oracle::stamp_of);
        let request = Request {
            volume,
            wish: ask.wish,
            start,
            count,
            submitted: self.oracle.tick(),
            write,
            data: vec![stamp; count as usize],
            connected: false,
        };
        self.hand_in(node, request);
    }

    fn hand_in(&mut self, node: usize, request: Request) {
        let span = Span::new(request.start * SECTOR, (request.count * SECTOR) as u32);
        let op = match request.wish {
            Wish::Read => Op::Read { span },
            Wish::Write { fua } => Op::Write { span, fua },
            Wish::Zeroes { unmap, fua } => Op::WriteZeroes { span, unmap, fua },
            Wish::Discard => Op::Discard { span },
            Wish::Flush => Op::Flush,
        };
        let volume = VolumeId(request.volume as u16);
        let Some(process) = &mut self.nodes[node].process else {
            return;
        };
        let id = process.request_id();
        process.requests.insert(id, request);
        let event = Event::Request(lockstep::engine::Request { id, volume, op });
        self.feed(node, event);
    }
}
