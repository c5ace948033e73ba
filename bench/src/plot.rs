//! Two kinds of drawing, as SVG text: lines over percentiles with a logarithmic scale, and bars
//! that are held against a limit.

use std::fmt::Write;

/// Size of a drawing, and the room around its plot area for labels.
const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 100.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 40.0;

/// Colours that also differ in brightness, in the order of use.
const COLOURS: [&str; 4] = ["#1b6ca8", "#e08e0b", "#4b9a4a", "#a83279"];

/// A line of a drawing.
pub struct Line {
    pub name: String,
    /// One value above zero for each label of the drawing.
    pub values: Vec<f64>,
    /// Dashed and grey: not ours, but what ours is compared with.
    pub reference: bool,
}

/// A bar of a drawing.
pub struct Bar {
    pub name: String,
    pub value: f64,
    pub limit: f64,
}

/// The text of `raw` where markup is expected.
pub fn escape(raw: &str) -> String {
    raw.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// A number in as many digits as one reads.
pub fn number(value: f64) -> String {
    match value {
        v if v >= 100_000.0 => format!("{:.0}k", v / 1e3),
        v if v >= 10_000.0 => format!("{:.1}k", v / 1e3),
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn open(title: &str) -> String {
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\">\n\
         <title>{0}</title>\n<text class=\"head\" x=\"{LEFT}\" y=\"18\">{0}</text>\n",
        escape(title)
    )
}

/// A horizontal grid line with its value.
fn rule(svg: &mut String, y: f64, value: f64) {
    let _ = writeln!(
        svg,
        "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\n\
         <text class=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
        WIDTH - RIGHT,
        LEFT - 6.0,
        y + 4.0,
        number(value)
    );
}

fn label(svg: &mut String, x: f64, y: f64, class: &str, text: &str) {
    let text = escape(text);
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>"
    );
}

/// 1, 2, 5, 10, 20, ... from the last below `low` to the first above `high`.
fn steps(low: f64, high: f64) -> Vec<f64> {
    let mut decade = 10f64.powf(low.max(f64::MIN_POSITIVE).log10().floor());
    let mut all = Vec::new();
    loop {
        for factor in [1.0, 2.0, 5.0] {
            let step = factor * decade;
            if step <= low {
                all.clear();
            }
            all.push(step);
            if step >= high && all.len() > 1 {
                return all;
            }
        }
        decade *= 10.0;
    }
}

/// Lines over `labels`, the values on a logarithmic scale. At least one line with one value; an
/// empty label leaves its place unnamed.
pub fn lines(title: &str, labels: &[&str], lines: &[Line]) -> String {
    let values = || lines.iter().flat_map(|line| line.values.iter().copied());
    let low = values().fold(f64::MAX, f64::min).max(0.01);
    let grid = steps(low, values().fold(low, f64::max));
    let (bottom, top) = (grid[0].ln(), grid[grid.len() - 1].ln());
    let y = |value: f64| {
        let part = (value.max(0.01).ln() - bottom) / (top - bottom);
        HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
    };
    let x = |index: usize| {
        let part = index as f64 / (labels.len().max(2) - 1) as f64;
        LEFT + 12.0 + part * (WIDTH - LEFT - RIGHT - 24.0)
    };
    let mut svg = open(title);
    for step in grid {
        rule(&mut svg, y(step), step);
    }
    for (index, text) in labels.iter().enumerate() {
        label(&mut svg, x(index), HEIGHT - BOTTOM + 18.0, "mid", text);
    }
    let mut colours = COLOURS.iter().cycle();
    for (row, line) in lines.iter().enumerate() {
        let (colour, dash) = if line.reference {
            ("#888", " stroke-dasharray=\"5 4\"")
        } else {
            (*colours.next().unwrap_or(&"#000"), "")
        };
        let points: Vec<String> = (line.values.iter().enumerate())
            .map(|(index, value)| format!("{:.1},{:.1}", x(index), y(*value)))
            .collect();
        let legend = TOP + 8.0 + 18.0 * row as f64;
        let _ = writeln!(
            svg,
            "<polyline fill=\"none\" stroke-width=\"2\" stroke=\"{colour}\"{dash} points=\"{}\"/>\n\
             <line stroke-width=\"2\" stroke=\"{colour}\"{dash} x1=\"{1:.1}\" x2=\"{2:.1}\" \
             y1=\"{3:.1}\" y2=\"{3:.1}\"/>",
            points.join(" "),
            WIDTH - RIGHT + 6.0,
            WIDTH - RIGHT + 24.0,
            legend
        );
        let after = WIDTH - RIGHT + 29.0;
        label(&mut svg, after, legend + 4.0, "start", &line.name);
    }
    svg + "</svg>\n"
}

/// Bars from zero, each with a mark at its limit and the ratio to it above.
pub fn bars(title: &str, bars: &[Bar]) -> String {
    let most = bars
        .iter()
        .fold(1.0, |most: f64, bar| most.max(bar.value).max(bar.limit));
    // Room above for the ratio.
    let top = most * 1.15;
    let y = |value: f64| HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM);
    let mut svg = open(title);
    for quarter in 0..=4 {
        let value = most * f64::from(quarter) / 4.0;
        rule(&mut svg, y(value), value);
    }
    let room = (WIDTH - LEFT - RIGHT) / bars.len().max(1) as f64;
    for (index, bar) in bars.iter().enumerate() {
        let width = (room * 0.6).min(60.0);
        let middle = LEFT + room * (index as f64 + 0.5);
        let left = middle - width / 2.0;
        let _ = writeln!(
            svg,
            "<rect fill=\"{}\" x=\"{left:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\"/>\n\
             <line class=\"limit\" x1=\"{:.1}\" x2=\"{:.1}\" y1=\"{5:.1}\" y2=\"{5:.1}\"/>",
            COLOURS[index % COLOURS.len()],
            y(bar.value),
            HEIGHT - BOTTOM - y(bar.value),
            left - 6.0,
            left + width + 6.0,
            y(bar.limit),
        );
        let ratio = number(bar.value / bar.limit.max(f64::MIN_POSITIVE));
        let above = y(bar.value.max(bar.limit)) - 6.0;
        label(&mut svg, middle, above, "mid", &ratio);
        label(&mut svg, middle, HEIGHT - BOTTOM + 18.0, "mid", &bar.name);
    }
    let (x, y) = (WIDTH - RIGHT + 6.0, TOP + 8.0);
    let _ = writeln!(
        svg,
        "<line class=\"limit\" x1=\"{x:.1}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
        x + 18.0
    );
    label(&mut svg, x + 23.0, y + 4.0, "start", "limit");
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_encloses_the_values() {
        assert_eq!(
            steps(30.0, 900.0),
            [20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
        );
        assert_eq!(steps(0.3, 0.4), [0.2, 0.5]);
        assert_eq!(steps(100.0, 100.0), [100.0, 200.0]);
        assert_eq!(steps(99.0, 99.0), [50.0, 100.0]);
    }

    #[test]
    fn every_point_lies_inside_the_drawing() {
        let line = |name: &str, values: &[f64]| Line {
            name: name.into(),
            values: values.to_vec(),
            reference: false,
        };
        let labels = ["p50", "p99", "max"];
        let all = [
            line("C", &[120.0, 800.0, 91_000.0]),
            line("<disk>", &[0.0, 45.0, 90.0]),
        ];
        let svg = lines("latency", &labels, &all);
        let points = svg.split("points=\"").skip(1);
        let mut seen = 0;
        for list in points.filter_map(|rest| rest.split('"').next()) {
            for point in list.split(' ') {
                let (x, y) = point.split_once(',').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((LEFT..=WIDTH - RIGHT).contains(&x), "{point}");
                assert!((TOP..=HEIGHT - BOTTOM).contains(&y), "{point}");
                seen += 1;
            }
        }
        assert_eq!(seen, 6);
        assert!(svg.contains("&lt;disk&gt;") && !svg.contains("<disk>"));
    }

    #[test]
    fn a_bar_at_half_its_limit_is_half_as_high() {
        let bar = Bar {
            name: "C".into(),
            value: 500.0,
            limit: 1000.0,
        };
        let svg = bars("iops", &[bar]);
        let after = |text: &str, word: &str| -> f64 {
            let rest = text.split_once(word).unwrap().1;
            rest.split('"').next().unwrap().parse().unwrap()
        };
        let rect = svg.split_once("<rect").unwrap().1;
        let height = after(rect, " height=\"");
        let limit = HEIGHT - BOTTOM - after(rect, " y1=\"");
        assert!((limit / height - 2.0).abs() < 0.01, "{limit} {height}");
        assert!(svg.contains(">0.50<"), "{svg}");
    }
}
