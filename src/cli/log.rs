//! Structured logs of the agent: on standard error, or in the journal with every field in its place.

use std::io::{self, IsTerminal};

use blochd::config::{Config, LogFormat, LogLevel};
use nix::sys::stat::fstat;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, reload};

/// Where systemd says that standard error is connected to the journal: its device and inode.
const JOURNAL_VARIABLE: &str = "JOURNAL_STREAM";

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sink {
    Text,
    Json,
    Journal,
}

/// Begins to log as the configuration says; the answer changes the level from then on. `RUST_LOG` has the
/// last word on it.
pub fn begin(config: &Config) -> Box<dyn Fn(LogLevel) + Send> {
    let (filter, handle) = reload::Layer::new(filter(config.log_level));
    // Colours are for people: a journal or a file would keep their codes.
    let lines = || fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let stream = std::env::var(JOURNAL_VARIABLE).ok();
    let mut missing = None;
    let layer = match sink(config.log_format, stream.as_deref(), standard_error()) {
        Sink::Text => lines().boxed(),
        Sink::Json => lines().json().boxed(),
        Sink::Journal => match tracing_journald::layer() {
            Ok(journal) => journal
                .with_syslog_identifier(env!("CARGO_PKG_NAME").to_owned())
                // MODEL and VARIANT, as the journal's own fields are named.
                .with_field_prefix(None)
                .with_priority_mappings(priorities())
                .boxed(),
            Err(error) => {
                missing = Some(error);
                lines().boxed()
            }
        },
    };
    // A logger that is there already is the caller's.
    let _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
    if let Some(error) = missing {
        tracing::warn!("the journal does not answer, the log goes to standard error: {error}");
    }
    Box::new(move |level| {
        // Fails only where the subscriber has gone.
        let _ = handle.reload(self::filter(level));
    })
}

/// Which sink a format means. `stream` is what systemd told of standard error when the service started,
/// `stderr` what it is: whoever started this from a service, with standard error elsewhere, wants the log
/// there.
fn sink(format: LogFormat, stream: Option<&str>, stderr: Option<(u64, u64)>) -> Sink {
    match format {
        LogFormat::Text => Sink::Text,
        LogFormat::Json => Sink::Json,
        LogFormat::Journald => Sink::Journal,
        LogFormat::Auto => {
            let told = stream.and_then(|stream| stream.split_once(':'));
            let told = told.and_then(|(device, inode)| {
                Some((device.parse::<u64>().ok()?, inode.parse::<u64>().ok()?))
            });
            if told.is_some() && told == stderr { Sink::Journal } else { Sink::Text }
        }
    }
}

/// Device and inode of standard error.
fn standard_error() -> Option<(u64, u64)> {
    fstat(io::stderr()).ok().map(|stat| (stat.st_dev, stat.st_ino))
}

/// As syslog names them: the crate's own would make a notice of what is only told.
fn priorities() -> PriorityMappings {
    PriorityMappings {
        error: Priority::Error,
        warn: Priority::Warning,
        info: Priority::Informational,
        debug: Priority::Debug,
        trace: Priority::Debug,
    }
}

/// ONNX Runtime says thousands of lines a model below warnings; `RUST_LOG` asks for them.
fn filter(level: LogLevel) -> EnvFilter {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},ort=warn")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_chosen_where_standard_error_is_connected_to_it() {
        let auto = |stream, stderr| sink(LogFormat::Auto, stream, stderr);
        let here = Some((9, 1234));
        assert_eq!(auto(Some("9:1234"), here), Sink::Journal);
        for stream in ["9:1235", "8:1234", "9", "", ":", "9:1234:5", "a:b", "-9:1234"] {
            assert_eq!(auto(Some(stream), here), Sink::Text, "{stream}");
        }
        assert_eq!(auto(None, here), Sink::Text);
        assert_eq!(auto(Some("9:1234"), None), Sink::Text);
        assert_eq!(auto(Some("nonsense"), None), Sink::Text);
    }

    #[test]
    fn a_format_that_is_asked_for_is_taken_whatever_is_connected() {
        for stream in [None, Some("9:1234")] {
            let of = |format| sink(format, stream, Some((9, 1234)));
            assert_eq!(of(LogFormat::Text), Sink::Text);
            assert_eq!(of(LogFormat::Json), Sink::Json);
            assert_eq!(of(LogFormat::Journald), Sink::Journal);
        }
    }
}
