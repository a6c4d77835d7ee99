//! `hotslot events`: prints the recorded events, and follows new events with `--follow`.

use std::collections::HashMap;
use std::time::Duration;

use clap::Args;
use clap_complete::ArgValueCompleter;
use hotslot_model::event::EventKind;
use serde_json::Value;
use uuid::Uuid;

use crate::argument::number;
use crate::client::query_string;
use crate::device_name::DeviceName;
use crate::event_stream::{EventStream, Message};
use crate::exit::{Exit, Failure};
use crate::output::{self, Format, Output, json_text, print_on};
use crate::pci::key_values;
use crate::remedy::by_commands;
use crate::value::{at, time};
use crate::{Cli, attachment, columns, complete, lookup, table};

/// The examples in `--help`.
pub(crate) const HELP: &str = "\
Every event has an id, and the ids have no gaps. With -o json each event is one line.
Examples:
  hotslot events -f
  hotslot events --last 20 --kind attachment
  hotslot events --user alice
  hotslot events -f --kind request.refused
  hotslot events -f --since 4711 --server web1 -o json";

/// The number of earlier events that `--follow` shows first.
const LAST: u16 = 10;

/// The largest id that an event can have.
const MAX_ID: u64 = i64::MAX.cast_unsigned();

/// The first and the longest delay before a lost connection is opened again.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Print the last 10 events, or those that --since or --last select, and then each new event. A lost connection is
    /// resumed after the last event.
    #[arg(short, long)]
    follow: bool,
    /// Begin after the event with this id. 0 begins with the oldest kept event, which is the default without -f.
    #[arg(long, value_name = "ID", conflicts_with = "last", allow_negative_numbers = true, value_parser = number::<u64>(0..=MAX_ID))]
    since: Option<u64>,
    /// Begin with the newest COUNT events.
    #[arg(long, value_name = "COUNT", allow_negative_numbers = true, value_parser = number::<u16>(0..=u16::MAX.into()))]
    last: Option<u16>,
    /// Only events of this kind, such as attachment.state, or of all kinds of a noun, such as device.
    #[arg(long, value_parser = |text: &str| EventKind::known(text).map(str::to_owned),
        add = ArgValueCompleter::new(complete::event_kinds))]
    kind: Option<String>,
    /// Only events of this host.
    #[arg(long, add = ArgValueCompleter::new(complete::hosts))]
    host: Option<String>,
    /// Only events of this server: its UUID, or its name if the server still exists.
    #[arg(long, add = ArgValueCompleter::new(complete::servers))]
    server: Option<String>,
    /// Only events of this device: its os-pci id, UUID or address, or an unambiguous beginning of the UUID of a present one.
    #[arg(long, add = ArgValueCompleter::new(complete::devices))]
    device: Option<String>,
    /// Only events of this attachment: its id, or an unambiguous beginning of the id of one that `hotslot attachment list`
    /// lists, also with --ended.
    #[arg(long, add = ArgValueCompleter::new(complete::attachment_ids))]
    attachment: Option<String>,
    /// Only events of the user with this name, such as a local user or a token.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Only events of the user with this id. Names of Keystone's users are unique only in their domain.
    #[arg(long, value_name = "ID")]
    user_id: Option<String>,
    /// Only events of users of the project with this id.
    #[arg(long, value_name = "ID")]
    project: Option<String>,
}

impl Events {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        let query = self.query(cli).await?;
        if self.follow { follow(cli, &query).await } else { list(cli, &query).await }
    }

    async fn query(&self, cli: &Cli) -> anyhow::Result<String> {
        let server = match &self.server {
            Some(server) => Some(lookup::server(cli, server).await?),
            None => None,
        };
        let attachment = match &self.attachment {
            Some(text) if Uuid::try_parse(text).is_err() => {
                let found = attachment::one(cli, &attachment::all(cli).await?, text).await?;
                Some(at(&found, "/attachment_id"))
            }
            other => other.clone(),
        };
        let device = match &self.device {
            Some(text) => match DeviceName::or_beginning(text) {
                Ok(name @ DeviceName::Beginning(_)) => {
                    lookup::records(cli, &name).await?.first().map(|record| at(record, "/uuid"))
                }
                Ok(_) | Err(_) => Some(text.clone()),
            },
            None => None,
        };
        let host = match &self.host {
            Some(host) => Some(lookup::host_name(cli, host).await?),
            None => None,
        };
        let last = self.last.or((self.follow && self.since.is_none()).then_some(LAST));
        let pairs = [
            ("since", self.since.map(|id| id.to_string())),
            ("last", last.map(|count| count.to_string())),
            ("kind", self.kind.clone()),
            ("host", host),
            ("server", server),
            ("device", device),
            ("attachment", attachment),
            ("user", self.user.clone()),
            ("user_id", self.user_id.clone()),
            ("project", self.project.clone()),
        ];
        let pairs: Vec<_> = pairs.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
        query_string(&pairs)
    }
}

/// Prints the recorded events, page by page.
async fn list(cli: &Cli, query: &str) -> anyhow::Result<Exit> {
    let mut query = query.to_owned();
    let mut lines = Lines::of(cli).await?;
    loop {
        let (events, next) = cli.client.page(&["events"], &query, "events").await?;
        for event in &events {
            if !lines.print(event)? {
                return Ok(Exit::Done);
            }
        }
        match next {
            Some(next) => query = next,
            None => break,
        }
    }
    if lines.none && !cli.output.is_data() {
        output::note(cli.output, "no events");
    }
    Ok(Exit::Done)
}

/// Prints events as they happen, until the reader of stdout closes it.
async fn follow(cli: &Cli, query: &str) -> anyhow::Result<Exit> {
    let mut lines = Lines::of(cli).await?;
    let mut last: Option<String> = None;
    let mut retry = RETRY.0;
    loop {
        let lost = match EventStream::open(&cli.client, query, last.as_deref()).await {
            Ok(mut stream) => loop {
                match stream.next().await {
                    Ok(Some(Message { id, data })) => {
                        retry = RETRY.0;
                        if !data.is_empty() && !lines.print(&serde_json::from_str(&data)?)? {
                            return Ok(Exit::Done);
                        }
                        last = Some(id).filter(|id| !id.is_empty()).or(last);
                    }
                    Ok(None) => break None,
                    Err(failure) => break Some(failure),
                }
            },
            // Do not retry when the service was never reached or refuses the request.
            Err(failure) if last.is_none() || failure.exit() != Exit::Unreachable => {
                return Err(failure.into());
            }
            Err(failure) => Some(failure),
        };
        if retry == RETRY.0 {
            let why = lost.as_ref().map_or("the service closed it".to_owned(), Failure::to_string);
            output::complain(&format!("the connection is lost, trying again: {why}"));
        }
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(RETRY.1);
    }
}

/// Prints events as they arrive, one in each line.
struct Lines {
    output: Output,
    /// The names of the servers, by UUID.
    servers: HashMap<String, String>,
    none: bool,
}

impl Lines {
    async fn of(cli: &Cli) -> Result<Self, Failure> {
        let output = cli.output;
        let wants_names = !output.is_data() && !output.is_names();
        let servers = if wants_names { lookup::server_names(cli).await? } else { HashMap::new() };
        Ok(Self { output, servers, none: true })
    }

    /// Prints one event. Returns whether the reader of stdout is still there.
    fn print(&mut self, event: &Value) -> anyhow::Result<bool> {
        let first = std::mem::replace(&mut self.none, false);
        match self.output.format() {
            Format::Json => return print_on(&format!("{}\n", json_text(&event.to_string()))),
            Format::Yaml => return print_on(&format!("---\n{}", output::yaml(event)?)),
            Format::Name => return print_on(&format!("{}\n", at(event, "/id"))),
            Format::Table | Format::Wide => {}
        }
        let titles = ["ID", "TIME", "KIND", "WHAT", "CHANGE", "WHO"].map(str::to_owned);
        let width = table::terminal_width();
        let title = if first && self.output.has_headers() { lines(&titles, width) } else { String::new() };
        print_on(&format!("{title}{}", lines(&cells(event, &self.servers), width)))
    }
}

/// Formats an event in one line, or in several lines where the terminal is narrower than that. The columns have fixed
/// widths, because the widths of later lines are not known yet. A longer cell moves the rest of its line.
fn lines(cells: &[String; 6], width: Option<usize>) -> String {
    let [id, time, kind, what, change, initiator] = cells;
    let line = format!("{id:<7}   {time:<20}   {kind:<20}   {what:<32}   {change:<28}   {initiator}");
    match width {
        Some(width) if line.trim_end().chars().count() > width => {
            let details = [what, change]
                .map(String::as_str)
                .into_iter()
                .filter(|text| !text.is_empty() && *text != "-");
            let details = format!("{} ({initiator})", details.collect::<Vec<_>>().join(": "));
            format!("{id:<7}   {time:<20}   {kind}\n{}", table::indented(&details, 10, width))
        }
        _ => format!("{}\n", line.trim_end()),
    }
}

/// Returns id, time, kind, what changed, how, and who changed it. `servers` are the names of the servers, by UUID.
pub(crate) fn cells(event: &Value, servers: &HashMap<String, String>) -> [String; 6] {
    let server = columns::called(servers, &at(event, "/server_id"));
    // An attachment is known by its server and its device.
    let attachment = if server == "-" { at(event, "/attachment_id") } else { "-".to_owned() };
    let parts = [at(event, "/host"), at(event, "/address"), server, attachment];
    let others = ["/rule_id", "/resource_id"].map(|name| at(event, name));
    let what: Vec<_> = parts.into_iter().chain(others).filter(|name| name != "-").collect();
    let value = |key: &str| {
        let value = &event[key];
        if value.is_object() { key_values(value, &[]) } else { at(value, "") }
    };
    let change = match (value("from").as_str(), value("to").as_str()) {
        ("-", "-") => String::new(),
        ("-", to) => to.to_owned(),
        (from, "-") => format!("{from} -> none"),
        (from, to) => format!("{from} -> {to}"),
    };
    let reason = Some(at(event, "/reason")).filter(|reason| reason != "-").map(|reason| by_commands(&reason));
    let change: Vec<_> = [change].into_iter().chain(reason).filter(|text| !text.is_empty()).collect();
    [
        at(event, "/id"),
        time(event, "/time"),
        at(event, "/kind"),
        if what.is_empty() { "-".into() } else { what.join(" ") },
        change.join(": "),
        at(event, "/who"),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_formatted_in_one_line_or_as_wide_as_the_terminal() {
        let state = json!({
            "id": 12, "time": "2026-11-21T12:00:00.000Z", "who": "request req-1", "kind": "attachment.state",
            "host": "node1", "server_id": "s", "device_id": 3, "address": "0000:3b:10.0", "attachment_id": "a",
            "rule_id": null, "from": "attaching", "to": "failed", "reason": "no free port",
        });
        let state = cells(&state, &HashMap::from([("s".to_owned(), "web1".to_owned())]));
        let one = "12        2026-11-21T12:00:00Z   attachment.state       node1 0000:3b:10.0 web1            \
                   attaching -> failed: no free port   request req-1\n";
        assert_eq!(lines(&state, None), one);
        assert_eq!(lines(&state, Some(150)), one);
        assert_eq!(
            lines(&state, Some(60)),
            "12        2026-11-21T12:00:00Z   attachment.state\n          \
             node1 0000:3b:10.0 web1: attaching -> failed: no\n          free port (request req-1)\n"
        );
        let facts = json!({ "from": {}, "to": { "numa_node": 1, "rack": "r1" } });
        assert_eq!(cells(&facts, &HashMap::new())[4], "numa_node=1, rack=r1");
        assert_eq!(cells(&json!({ "from": null, "to": null, "reason": null }), &HashMap::new())[4], "");
    }
}
