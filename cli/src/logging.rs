//! The log of the service: text, JSON, or the journal's own protocol.

use std::io::{self, IsTerminal as _};
use std::os::unix::fs::MetadataExt as _;

use hotslot_driver::text;
use hotslot_service::config::{Levels, Log, LogFormat};
use hotslot_service::log;
use tracing::Level;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::{Targets, filter_fn};
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::fmt::{self, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry, reload};

use crate::table::is_coloured;

/// The variable whose levels replace those of the configuration at the start.
const LEVELS: &str = "HOTSLOT_LOG";

/// An output of the log.
type Output = Box<dyn Layer<Registry> + Send + Sync>;

/// Starts the log as the configuration says.
pub(crate) fn start(configured: &Log) {
    let variable = std::env::var(LEVELS).ok().map(|text| text.parse::<Levels>());
    let levels = match &variable {
        Some(Ok(levels)) => levels.clone(),
        Some(Err(_)) | None => configured.levels.clone(),
    };
    let (output, problem) = output(configured.format);
    let (filter, handle) = reload::Layer::new(targets(&levels));
    // Libraries may log secrets, such as the path of a URL, below the level info. Nobody can switch that on.
    let own = filter_fn(|data| *data.level() <= Level::INFO || data.target().starts_with("hotslot"));
    tracing_subscriber::registry().with(output).with(own).with(filter).init();
    log::install(levels, move |levels| {
        handle.reload(targets(levels)).map_err(|error| format!("the levels cannot be changed: {error}"))
    });
    match variable {
        Some(Err(reason)) => tracing::warn!("{LEVELS} is ignored: {reason}"),
        Some(Ok(levels)) => levels.unknown().iter().for_each(|reason| tracing::warn!("{LEVELS}: {reason}")),
        None => {}
    }
    if let Some(problem) = problem {
        tracing::warn!("[log] format: {problem}; the log is text");
    }
}

/// Returns the output of a format, and why it is another one than was requested.
fn output(format: LogFormat) -> (Output, Option<String>) {
    let text = || {
        let ansi = io::stderr().is_terminal() && is_coloured();
        fmt::layer().with_ansi(ansi).fmt_fields(fields()).with_writer(io::stderr).boxed()
    };
    match format {
        LogFormat::Text => (text(), None),
        LogFormat::Json => {
            let json = fmt::layer().json().flatten_event(true).with_span_list(false);
            (json.with_writer(io::stderr).boxed(), None)
        }
        LogFormat::Auto if !is_journal() => (text(), None),
        LogFormat::Auto | LogFormat::Journald => match tracing_journald::layer() {
            Ok(journal) => {
                let journal = journal.with_field_prefix(None).with_syslog_identifier("hotslot".into());
                (journal.boxed(), None)
            }
            Err(error) => (text(), Some(format!("systemd-journald cannot be reached: {error}"))),
        },
    }
}

/// Whether standard error is a stream to the journal: systemd names the stream in `JOURNAL_STREAM` (systemd.exec(5)).
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/proc/self/fd/2").is_ok_and(|own| stream == format!("{}:{}", own.dev(), own.ino()))
}

fn targets(levels: &Levels) -> Targets {
    Targets::new().with_default(levels.all).with_targets(levels.modules.iter().cloned())
}

/// Formats the fields of a log line. Text from a guest, a host or a caller is escaped, so that it can neither begin a
/// new line nor send control sequences to a terminal.
fn fields() -> impl for<'w> FormatFields<'w> {
    let field = |writer: &mut Writer<'_>, field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
        let field_text = format!("{value:?}");
        let field_text = text::escape(&field_text);
        if field.name() == "message" {
            write!(writer, "{field_text}")
        } else {
            write!(writer, "{}={field_text}", field.name())
        }
    };
    format::debug_fn(field).delimited(" ")
}
