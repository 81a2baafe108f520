//! Structured logs of the agent on standard error.

use std::io::IsTerminal;

use blochd::config::{Config, LogFormat, LogLevel};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, reload};

/// Begins to log as the configuration says; the answer changes the level from then on. `RUST_LOG` has the
/// last word on it.
pub fn begin(config: &Config) -> Box<dyn Fn(LogLevel) + Send> {
    let (filter, handle) = reload::Layer::new(filter(config.log_level));
    // Colours are for people: a journal or a file would keep their codes.
    let lines =
        fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = match config.log_format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    // A logger that is there already is the caller's.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
    Box::new(move |level| {
        // Fails only where the subscriber has gone.
        let _ = handle.reload(self::filter(level));
    })
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
