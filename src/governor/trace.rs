//! What the agent records of a box and the simulator replays: a table of comma-separated values, a header
//! line first, one line a model and stretch of time.
//!
//! ```text
//! t_s,model,arrivals,slowdown,variant,queue_ms,compute_ms,latency_ms,temperature_c
//! 0.000,ocr,10,1.0231,dense,0.4,8.61,9.9,51.5
//! 0.250,ocr,9,1.0410,dense,0.3,8.77,9.8,51.5
//! ```
//!
//! - `t_s`: begin of the stretch, seconds since any moment. It lasts until the model's next line, the last one
//!   as long as the one before it.
//! - `arrivals`: requests that arrived within it.
//! - `slowdown`: median run over the promised median of the variant in service; empty where nothing ran: then
//!   as before, and 1 at the begin.
//! - `model`: may be left out where the table is of one model.
//! - `variant`: the one in service at the stretch's end.
//! - `queue_ms`, `compute_ms`: mean wait and median run of the requests that were answered.
//! - `latency_ms`: at the budget's percentile, of those.
//! - `temperature_c`: the hottest sensor.
//!
//! `t_s`, `arrivals` and `slowdown` must be there, in any order; the simulator needs no other. Blank lines and
//! those that begin with `#` are passed over.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::limits::{TICK, TRACE_REQUESTS, TRACE_ROWS, TRACE_SECONDS, TRACE_SLOWDOWN};
use crate::units::check_model_name;

/// The header of what [`Row::line`] writes.
pub const HEADER: &str =
    "t_s,model,arrivals,slowdown,variant,queue_ms,compute_ms,latency_ms,temperature_c";

/// Latest moment, seconds: the wall clock of the year 2286.
const LATEST: f64 = 1e10;

/// One line: what happened to a model in a stretch of time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Row {
    /// Begin, seconds.
    pub t_s: f64,
    /// Name of the model; empty where the table has no such column.
    pub model: String,
    /// Requests that arrived.
    pub arrivals: u64,
    /// Median run over the promised median; `None` where nothing ran.
    pub slowdown: Option<f64>,
    /// The variant in service.
    pub variant: Option<String>,
    /// Mean wait, milliseconds.
    pub queue_ms: Option<f64>,
    /// Median run, milliseconds.
    pub compute_ms: Option<f64>,
    /// Latency at the budget's percentile, milliseconds.
    pub latency_ms: Option<f64>,
    /// The hottest sensor.
    pub temperature_c: Option<f64>,
}

impl Row {
    /// The row as a line of the table, with its end.
    pub fn line(&self) -> String {
        let mut line = format!("{:.3},{},{},", self.t_s, self.model, self.arrivals);
        let number = |line: &mut String, value: Option<f64>, digits: usize| {
            if let Some(value) = value.filter(|value| value.is_finite()) {
                // Writing to a string cannot fail.
                let _ = write!(line, "{value:.digits$}");
            }
        };
        number(&mut line, self.slowdown, 4);
        line.push(',');
        line.push_str(self.variant.as_deref().unwrap_or_default());
        for value in [self.queue_ms, self.compute_ms, self.latency_ms] {
            line.push(',');
            number(&mut line, value, 3);
        }
        line.push(',');
        number(&mut line, self.temperature_c, 1);
        line.push('\n');
        line
    }
}

/// What is wrong with a table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    #[error("it is empty: its first line names the columns, such as {HEADER}")]
    Empty,
    #[error("line {line}: {what}")]
    Line {
        /// From 1.
        line: usize,
        what: String,
    },
    #[error("it has more than {TRACE_ROWS} lines")]
    Long,
}

/// A recorded or made-up box: the rows of each model, in the order of time.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trace {
    pub models: BTreeMap<String, Vec<Row>>,
}

const COLUMNS: [&str; 9] = [
    "t_s",
    "model",
    "arrivals",
    "slowdown",
    "variant",
    "queue_ms",
    "compute_ms",
    "latency_ms",
    "temperature_c",
];

/// Where each of [`COLUMNS`] stands in a line.
struct Header {
    places: [Option<usize>; COLUMNS.len()],
    columns: usize,
}

impl Header {
    fn read(line: usize, text: &str) -> Result<Self, TraceError> {
        let wrong = |what: String| TraceError::Line { line, what };
        let mut header = Self { places: [None; COLUMNS.len()], columns: 0 };
        for (place, name) in text.split(',').map(str::trim).enumerate() {
            header.columns += 1;
            let Some(column) = COLUMNS.iter().position(|column| *column == name) else {
                let known = COLUMNS.join(", ");
                return Err(wrong(format!("{name:?} is no column: there are {known}")));
            };
            if header.places[column].replace(place).is_some() {
                return Err(wrong(format!("the column {name} stands twice")));
            }
        }
        for needed in ["t_s", "arrivals", "slowdown"] {
            let column = COLUMNS.iter().position(|column| *column == needed);
            if column.is_none_or(|column| header.places[column].is_none()) {
                return Err(wrong(format!("the column {needed} is missing")));
            }
        }
        Ok(header)
    }

    fn row(&self, line: usize, text: &str) -> Result<Row, TraceError> {
        let wrong = |what: String| TraceError::Line { line, what };
        let cells: Vec<&str> = text.split(',').map(str::trim).collect();
        if cells.len() != self.columns {
            let what = format!("{} values, the header has {}", cells.len(), self.columns);
            return Err(wrong(what));
        }
        let cell = |column: usize| {
            let text = self.places[column].and_then(|place| cells.get(place).copied());
            text.filter(|text| !text.is_empty())
        };
        let number = |column: usize, least: f64, most: f64| -> Result<Option<f64>, TraceError> {
            let Some(text) = cell(column) else { return Ok(None) };
            let read = text.parse::<f64>().ok().filter(|value| (least..=most).contains(value));
            let name = COLUMNS[column];
            read.map(Some).ok_or_else(|| {
                wrong(format!("{name} is {text:?}, not a number from {least} to {most}"))
            })
        };
        let needed = |column: usize| wrong(format!("{} is empty", COLUMNS[column]));
        let arrivals = cell(2).ok_or_else(|| needed(2))?;
        let arrivals = arrivals
            .parse()
            .map_err(|_| wrong(format!("arrivals is {arrivals:?}, not a number of requests")))?;
        let model = cell(1).unwrap_or_default();
        if self.places[1].is_some() {
            check_model_name(model).map_err(|error| wrong(error.to_string()))?;
        }
        Ok(Row {
            t_s: number(0, 0.0, LATEST)?.ok_or_else(|| needed(0))?,
            model: model.to_owned(),
            arrivals,
            slowdown: number(3, 1.0 / TRACE_SLOWDOWN, TRACE_SLOWDOWN)?,
            variant: cell(4).map(str::to_owned),
            queue_ms: number(5, 0.0, f64::MAX)?,
            compute_ms: number(6, 0.0, f64::MAX)?,
            latency_ms: number(7, 0.0, f64::MAX)?,
            temperature_c: number(8, -273.15, 1000.0)?,
        })
    }
}

impl Trace {
    /// Reads a table.
    ///
    /// # Errors
    /// The first line that is wrong, by its number, and what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let lines = text.lines().enumerate().map(|(number, line)| (number + 1, line.trim()));
        let mut lines = lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let (number, names) = lines.next().ok_or(TraceError::Empty)?;
        let header = Header::read(number, names)?;
        let mut trace = Self::default();
        let (mut rows, mut requests, mut begin) = (0usize, 0u64, None);
        for (number, line) in lines {
            // The agent writes the header anew where it starts anew; files may be joined.
            if line == names {
                continue;
            }
            rows += 1;
            if rows > TRACE_ROWS {
                return Err(TraceError::Long);
            }
            let row = header.row(number, line)?;
            let wrong = |what: String| TraceError::Line { line: number, what };
            requests = requests.saturating_add(row.arrivals);
            if requests > TRACE_REQUESTS {
                let what = format!("{requests} requests so far, more than {TRACE_REQUESTS}");
                return Err(wrong(what));
            }
            let begin = *begin.get_or_insert(row.t_s);
            if (row.t_s - begin).abs() > TRACE_SECONDS {
                return Err(wrong(format!("t_s is {}, a month from the first", row.t_s)));
            }
            let of_model = trace.models.entry(row.model.clone()).or_default();
            if let Some(last) = of_model.last().filter(|last| last.t_s >= row.t_s) {
                return Err(wrong(format!("t_s is {}, not after {}", row.t_s, last.t_s)));
            }
            of_model.push(row);
        }
        if rows == 0 {
            let what = "the header is followed by no line".to_owned();
            return Err(TraceError::Line { line: number, what });
        }
        Ok(trace)
    }

    /// Goes on with another table.
    ///
    /// # Errors
    /// Where that begins before the end of this one, or both together are too long.
    pub fn append(&mut self, other: Self) -> Result<(), TraceError> {
        let rows = |trace: &Self| trace.models.values().map(Vec::len).sum::<usize>();
        if rows(self) + rows(&other) > TRACE_ROWS {
            return Err(TraceError::Long);
        }
        let requests = |trace: &Self| {
            let rows = trace.models.values().flatten();
            rows.fold(0u64, |sum, row| sum.saturating_add(row.arrivals))
        };
        if requests(self).saturating_add(requests(&other)) > TRACE_REQUESTS {
            let what = format!("more than {TRACE_REQUESTS} requests in all tables");
            return Err(TraceError::Line { line: 2, what });
        }
        let first = other.begin();
        if !self.models.is_empty() && first - self.begin() > TRACE_SECONDS {
            let (line, what) = (2, "it is of a month after the first of these tables".to_owned());
            return Err(TraceError::Line { line, what });
        }
        for (model, more) in other.models {
            let rows = self.models.entry(model).or_default();
            let last = rows.last().map_or(f64::MIN, |row| row.t_s);
            if let Some(row) = more.first().filter(|row| row.t_s <= last) {
                let what = format!("t_s is {}, not after {last} of the table before", row.t_s);
                return Err(TraceError::Line { line: 2, what });
            }
            rows.extend(more);
        }
        Ok(())
    }

    /// First moment, seconds.
    pub fn begin(&self) -> f64 {
        let first = self.models.values().filter_map(|rows| rows.first());
        let first = first.map(|row| row.t_s).fold(f64::MAX, f64::min);
        if first == f64::MAX { 0.0 } else { first }
    }

    /// End of the last stretch, seconds since [`Trace::begin`].
    pub fn length(&self) -> f64 {
        let last = self.models.keys().filter_map(|model| self.stretches(model).last().copied());
        last.map(|stretch| stretch.to).fold(0.0, f64::max)
    }

    /// The stretches of one model, seconds since [`Trace::begin`].
    pub fn stretches(&self, model: &str) -> Vec<Stretch> {
        let rows = self.models.get(model).map_or(&[][..], Vec::as_slice);
        let begin = self.begin();
        let mut slowdown = 1.0;
        let mut stretches: Vec<Stretch> = Vec::with_capacity(rows.len());
        for (index, row) in rows.iter().enumerate() {
            slowdown = row.slowdown.unwrap_or(slowdown);
            let length = match (rows.get(index + 1), stretches.last()) {
                (Some(next), _) => next.t_s - row.t_s,
                (None, Some(before)) => before.to - before.from,
                (None, None) => TICK.as_secs_f64(),
            };
            let from = row.t_s - begin;
            stretches.push(Stretch { from, to: from + length, arrivals: row.arrivals, slowdown });
        }
        stretches
    }
}

/// A stretch of time in which a box is the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stretch {
    /// Seconds.
    pub from: f64,
    pub to: f64,
    /// Requests that arrive within it.
    pub arrivals: u64,
    /// What a run takes, over its promise.
    pub slowdown: f64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wrong(text: &str) -> String {
        Trace::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let full = Row {
            t_s: 12.25,
            model: "ocr".to_owned(),
            arrivals: 7,
            slowdown: Some(1.0625),
            variant: Some("r0.75".to_owned()),
            queue_ms: Some(0.5),
            compute_ms: Some(8.125),
            latency_ms: Some(9.75),
            temperature_c: Some(61.5),
        };
        let idle = Row { t_s: 12.5, model: "ocr".to_owned(), ..Row::default() };
        let text = format!("{HEADER}\n{}{}", full.line(), idle.line());
        assert_eq!(Trace::parse(&text).unwrap().models["ocr"], [full, idle]);
    }

    #[test]
    fn a_stretch_lasts_until_the_next_and_keeps_the_last_slowdown_that_is_known() {
        let trace = Trace::parse("# a box\n\nslowdown,t_s,arrivals\n,5,1\n2.5,6,3\n,6.5,0\n");
        let stretch = |from, to, arrivals, slowdown| Stretch { from, to, arrivals, slowdown };
        assert_eq!(
            trace.unwrap().stretches(""),
            [stretch(0.0, 1.0, 1, 1.0), stretch(1.0, 1.5, 3, 2.5), stretch(1.5, 2.0, 0, 2.5)]
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        let line = |row: &str| wrong(&format!("t_s,arrivals,slowdown\n0,1,1\n{row}\n"));
        assert_eq!(line("1,1"), "line 3: 2 values, the header has 3");
        assert_eq!(line("x,1,1"), "line 3: t_s is \"x\", not a number from 0 to 10000000000");
        assert_eq!(line("NaN,1,1"), "line 3: t_s is \"NaN\", not a number from 0 to 10000000000");
        assert_eq!(line("1,-4,1"), "line 3: arrivals is \"-4\", not a number of requests");
        assert_eq!(line("1,1,0"), "line 3: slowdown is \"0\", not a number from 0.001 to 1000");
        assert_eq!(line("0,1,1"), "line 3: t_s is 0, not after 0");
        assert_eq!(line("9e9,1,1"), "line 3: t_s is 9000000000, a month from the first");
        assert_eq!(line("1,,1"), "line 3: arrivals is empty");
        assert_eq!(
            line("1,99999999999,1"),
            "line 3: 100000000000 requests so far, more than 20000000"
        );
        assert!(wrong("").starts_with("it is empty"));
        assert_eq!(wrong("t_s,arrivals\n"), "line 1: the column slowdown is missing");
        assert!(wrong("t_s,arrivals,speed\n").starts_with("line 1: \"speed\" is no column"));
        assert_eq!(wrong("t_s,t_s\n"), "line 1: the column t_s stands twice");
        assert_eq!(wrong("t_s,arrivals,slowdown\n"), "line 1: the header is followed by no line");
        assert!(wrong("t_s,model,arrivals,slowdown\n0,../x,1,1\n").starts_with("line 2: \"../x\""));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(
            header in any::<bool>(),
            lines in "([0-9.,eN-]{0,9}\n){0,6}",
        ) {
            let header = if header { "t_s,arrivals,slowdown\n" } else { "" };
            let text = format!("{header}{lines}");
            let _ = Trace::parse(&text).map(|trace| (trace.stretches(""), trace.length()));
        }
    }
}
