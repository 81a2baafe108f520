//! Prometheus's text exposition format, version 0.0.4.

use std::fmt::Write;

#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A page under construction: families one after another, the samples of each behind its head.
#[derive(Debug, Default)]
pub(super) struct Page {
    text: String,
    name: &'static str,
    /// The head of the family, until its first sample: a family without samples is left out.
    head: Option<String>,
}

pub(super) type Label<'a> = (&'a str, &'a str);

impl Page {
    /// Begins a family.
    pub fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.name = name;
        self.head = Some(format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    }

    /// A sample of the family.
    pub fn sample(&mut self, labels: &[Label<'_>], value: f64) {
        self.line("", labels, None, value);
    }

    /// The samples of one histogram: `counts` holds one bucket more than `bounds`, not cumulative.
    pub fn histogram(
        &mut self,
        labels: &[Label<'_>],
        bounds: impl Iterator<Item = f64>,
        counts: &[u64],
        sum: f64,
    ) {
        let bounds = bounds.map(|bound| bound.to_string()).chain(["+Inf".to_owned()]);
        let mut total = 0;
        for (bound, count) in bounds.zip(counts) {
            total += count;
            self.line("_bucket", labels, Some(("le", &bound)), total as f64);
        }
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, total as f64);
    }

    fn line(&mut self, suffix: &str, labels: &[Label<'_>], last: Option<Label<'_>>, value: f64) {
        if let Some(head) = self.head.take() {
            self.text.push_str(&head);
        }
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        let mut open = '{';
        for (name, value) in labels.iter().copied().chain(last) {
            self.text.push(open);
            self.text.push_str(name);
            self.text.push_str("=\"");
            escape(&mut self.text, value);
            self.text.push('"');
            open = ',';
        }
        if open == ',' {
            self.text.push('}');
        }
        // Writing into a string does not fail.
        let _ = writeln!(self.text, " {value}");
    }

    pub fn finish(self) -> String {
        self.text
    }
}

fn escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_samples_and_histograms_are_written_as_prometheus_reads_them() {
        let mut page = Page::default();
        page.family("empty", Kind::Gauge, "Left out.");
        page.family("requests", Kind::Counter, "Requests.");
        page.sample(&[("model", "a\"b\\c\nd"), ("version", "1")], 3.0);
        page.sample(&[], 0.5);
        page.family("seconds", Kind::Histogram, "Time.");
        page.histogram(&[("model", "m")], [0.001, 0.1].into_iter(), &[1, 2, 4], 1.25);
        let expected = "\
# HELP requests Requests.
# TYPE requests counter
requests{model=\"a\\\"b\\\\c\\nd\",version=\"1\"} 3
requests 0.5
# HELP seconds Time.
# TYPE seconds histogram
seconds_bucket{model=\"m\",le=\"0.001\"} 1
seconds_bucket{model=\"m\",le=\"0.1\"} 3
seconds_bucket{model=\"m\",le=\"+Inf\"} 7
seconds_sum{model=\"m\"} 1.25
seconds_count{model=\"m\"} 7
";
        assert_eq!(page.finish(), expected);
    }
}
