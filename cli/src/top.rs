//! `hotslot top`: hosts, the attaches and detaches that are under way, and the latest events, on one screen that follows
//! them.

use std::collections::HashMap;
use std::io::{IsTerminal as _, stdout};
use std::time::Duration;

use clap::Args;
use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Block, Paragraph, Row, Table};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::client::permitted;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::table::{Column, is_coloured, table};
use crate::value::{at, time};
use crate::wait::stage;
use crate::{Cli, columns, events, host, lookup};

/// What `--help` says besides the options.
pub(crate) const HELP: &str = "\
Keys: q, Esc or Ctrl-C ends it. With --once, and where there is no terminal, the screen is printed once.
Hosts and events are shown to those who may list them.";

/// The time between two requests for the state.
const PERIOD: Duration = Duration::from_secs(1);

/// How many events are fetched.
const EVENTS: &str = "last=50";

/// How many events are printed where there is no screen to fill.
const PLAIN: usize = 10;

#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Print the screen once, and end.
    #[arg(long)]
    once: bool,
}

/// One part of the screen: a title, and a table.
struct Part {
    title: &'static str,
    columns: Vec<(&'static str, Constraint)>,
    rows: Vec<Vec<String>>,
    /// What is shown in place of an empty table.
    none: &'static str,
}

/// What the screen shows.
struct Screen {
    hosts: Part,
    under_way: Part,
    events: Part,
}

impl Top {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        let screen = Screen::read(cli).await?;
        if cli.output.is_data() {
            output::data(cli.output, &screen.json())?;
            return Ok(Exit::Done);
        }
        if cli.output.is_names() {
            let hosts = screen.hosts.rows.into_iter().filter_map(|cells| cells.into_iter().next());
            output::names(hosts)?;
            return Ok(Exit::Done);
        }
        if self.once || !stdout().is_terminal() {
            output::print_table(&screen.text())?;
            return Ok(Exit::Done);
        }
        let mut terminal = ratatui::try_init()?;
        let outcome = follow(cli, screen, |screen, problem| {
            terminal.draw(|frame| screen.draw(frame, problem)).map(drop)
        });
        let outcome = outcome.await;
        ratatui::try_restore()?;
        outcome.map(|()| Exit::Done)
    }
}

/// Draws the screen again and again, until a key ends it.
async fn follow(
    cli: &Cli,
    mut screen: Screen,
    mut draw: impl FnMut(&Screen, Option<&str>) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let mut keys = keys();
    let mut problem = None;
    loop {
        draw(&screen, problem.as_deref())?;
        let next = async {
            tokio::time::sleep(PERIOD).await;
            Screen::read(cli).await
        };
        tokio::select! {
            key = keys.recv() => match key {
                Some(Event::Key(key)) if ends(key) => return Ok(()),
                // After a change of its size the terminal is drawn again.
                Some(_) => {}
                None => return Ok(()),
            },
            read = next => match read {
                Ok(read) => (screen, problem) = (read, None),
                Err(failure) => problem = Some(failure.to_string()),
            },
        }
    }
}

/// Whether a key ends the command.
fn ends(key: KeyEvent) -> bool {
    let interrupts = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (interrupts || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

/// Reads the keys of the terminal in a thread, because reading blocks.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, keys) = mpsc::channel(16);
    std::thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    keys
}

impl Screen {
    async fn read(cli: &Cli) -> Result<Self, Failure> {
        let client = &cli.client;
        let hosts = permitted(client.items(&["os-hypervisors", "detail"], "hypervisors").await)?;
        let attachments = permitted(client.items(&["os-pci_attachments"], "pciAttachment").await)?;
        let names = lookup::server_names(cli).await?;
        let events = match client.page(&["events"], EVENTS, "events").await {
            Ok((events, _)) => permitted(Ok(events))?,
            Err(failure) => permitted(Err(failure))?,
        };
        Ok(Self::of(hosts.as_deref(), attachments.as_deref(), &names, events.as_deref()))
    }

    fn of(
        hosts: Option<&[Value]>,
        attachments: Option<&[Value]>,
        names: &HashMap<String, String>,
        events: Option<&[Value]>,
    ) -> Self {
        const HIDDEN: &str = "you may not see them";
        let seen = attachments.unwrap_or_default();
        let on = |host: &Value| {
            let of_host = |one: &&Value| one["host"] == host["hypervisor_hostname"];
            seen.iter().filter(of_host).count()
        };
        let of_host = |host: &Value| {
            let pools = host["pci_stats"].as_array().into_iter().flatten();
            let free: u64 = pools.filter_map(|pool| pool["count"].as_u64()).sum();
            let stuck = host["stuck_calls"].as_array().map_or(0, Vec::len);
            let name = at(host, "/hypervisor_hostname");
            let numbers = [on(host).to_string(), free.to_string(), stuck.to_string()];
            let [attached, free, stuck] = numbers;
            let mode = at(host, "/mode");
            vec![name, host::state(host), mode, attached, free, stuck, at(host, "/state_reason")]
        };
        let changing = |one: &&Value| {
            one["operation"].is_object() || one["status"] == "attaching" || one["status"] == "detaching"
        };
        let operation = |one: &Value| {
            let what = match at(one, "/operation/name") {
                name if name == "-" => at(one, "/status"),
                name => name,
            };
            let clock = |pointer: &str| time(one, pointer).get(11..).unwrap_or("-").to_owned();
            let doing = stage(one).unwrap_or_else(|| at(one, "/status_reason"));
            let guest = columns::called(names, &at(one, "/serverId"));
            vec![
                guest,
                at(one, "/address"),
                what,
                clock("/operation/began_at"),
                clock("/operation/ends_by"),
                doing,
            ]
        };
        let event = |event: &Value| {
            let [_, when, kind, what, change, _] = events::cells(event, names);
            vec![when.get(11..).unwrap_or(&when).to_owned(), kind, what, change]
        };
        let rest = Constraint::Fill(1);
        Self {
            hosts: Part {
                title: "Hosts",
                columns: vec![
                    ("HOST", Constraint::Max(20)),
                    ("STATE", Constraint::Length(11)),
                    ("MODE", Constraint::Length(9)),
                    ("ATTACHED", Constraint::Length(8)),
                    ("FREE", Constraint::Length(5)),
                    ("STUCK", Constraint::Length(5)),
                    ("REASON", rest),
                ],
                rows: hosts.unwrap_or_default().iter().map(of_host).collect(),
                none: if hosts.is_some() { "none" } else { HIDDEN },
            },
            under_way: Part {
                title: "Under way",
                columns: vec![
                    ("SERVER", Constraint::Max(16)),
                    ("ADDRESS", Constraint::Length(12)),
                    ("DOING", Constraint::Length(9)),
                    ("SINCE", Constraint::Length(9)),
                    ("ENDS BY", Constraint::Length(9)),
                    ("STEP", rest),
                ],
                rows: seen.iter().filter(changing).map(operation).collect(),
                none: if attachments.is_some() { "nothing is being attached or detached" } else { HIDDEN },
            },
            events: Part {
                title: "Events, the latest first",
                columns: vec![
                    ("TIME", Constraint::Length(9)),
                    ("KIND", Constraint::Length(17)),
                    ("WHAT", rest),
                    ("CHANGE", rest),
                ],
                rows: events.unwrap_or_default().iter().rev().map(event).collect(),
                none: if events.is_some() { "none" } else { HIDDEN },
            },
        }
    }

    fn parts(&self) -> [&Part; 3] {
        [&self.hosts, &self.under_way, &self.events]
    }

    /// The screen as plain text.
    fn text(&self) -> String {
        let all = usize::MAX;
        [self.hosts.text(all), self.under_way.text(all), self.events.text(PLAIN)].join("\n")
    }

    /// The cells of the screen, for programs.
    fn json(&self) -> Value {
        json!({ "hosts": self.hosts.json(), "under_way": self.under_way.json(), "events": self.events.json() })
    }

    /// Draws the screen: the hosts and what is under way as high as they need and their half of the screen allows, and the
    /// events in the rest.
    fn draw(&self, frame: &mut Frame<'_>, problem: Option<&str>) {
        // A frame above and below, and the titles of the columns.
        let height = |part: &Part| u16::try_from(part.rows.len().max(1) + 3).unwrap_or(u16::MAX);
        let most = (frame.area().height / 3).max(4);
        let [hosts, under_way, events, foot] = Layout::vertical([
            Constraint::Length(height(&self.hosts).min(most)),
            Constraint::Length(height(&self.under_way).min(most)),
            Constraint::Fill(1),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        for (part, area) in self.parts().into_iter().zip([hosts, under_way, events]) {
            part.draw(frame, area);
        }
        let foot_line = match problem {
            Some(problem) => Line::from(format!("not up to date: {problem}")).style(alarm()),
            None => Line::from("q: quit").dim(),
        };
        frame.render_widget(foot_line, foot);
    }
}

/// The style of what needs attention. The variable `NO_COLOR` switches colours off.
fn alarm() -> Style {
    if is_coloured() { Style::new().red().bold() } else { Style::new().bold() }
}

impl Part {
    /// The table as plain text, with at most this many rows.
    fn text(&self, most: usize) -> String {
        if self.rows.is_empty() {
            return format!("{}: {}\n", self.title, self.none);
        }
        let rows: Vec<Value> = self.rows.iter().take(most).map(|row| json!(row)).collect();
        let columns = self.columns.iter().enumerate().map(|(index, (title, width))| {
            let column = Column::new(title, move |row| at(&row[index], ""));
            if *width == Constraint::Fill(1) { column.wrapped() } else { column }
        });
        format!("{}:\n{}", self.title, table(&rows, &columns.collect::<Vec<_>>(), false, true))
    }

    fn json(&self) -> Value {
        let keys = self.columns.iter().map(|(title, _)| title.to_lowercase().replace(' ', "_"));
        let keys: Vec<_> = keys.collect();
        let row = |cells: &Vec<String>| Value::from_iter(keys.iter().cloned().zip(cells.iter().cloned()));
        self.rows.iter().map(row).collect()
    }

    fn draw(&self, frame: &mut Frame<'_>, area: Rect) {
        let block = Block::bordered().title(self.title);
        if self.rows.is_empty() {
            frame.render_widget(Paragraph::new(self.none).block(block), area);
            return;
        }
        let header = Row::new(self.columns.iter().map(|(title, _)| *title)).bold();
        let rows = self.rows.iter().map(|cells| {
            let is_down = cells.get(1).is_some_and(|cell| cell == "unreachable");
            Row::new(cells.iter().map(String::as_str)).style(if is_down { alarm() } else { Style::new() })
        });
        let widths = self.columns.iter().map(|(_, width)| *width);
        frame.render_widget(Table::new(rows, widths).header(header).column_spacing(1).block(block), area);
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn screen() -> Screen {
        let host = |name: &str, state: &str| {
            json!({ "hypervisor_hostname": name, "state": state, "pci_stats": [{ "count": 3 }, { "count": 4 }],
                    "stuck_calls": [], "mode": "open", "state_reason": (state == "down").then_some("connection refused") })
        };
        let attachment = |address: &str, operation: Value, progress: Value| {
            json!({ "serverId": "10000000-0000-4000-8000-000000000001", "host": "node1", "address": address,
                    "status": "detaching", "status_reason": "the guest has not released it\u{1b}[2J",
                    "operation": operation, "progress": progress })
        };
        let operation = json!({ "name": "detach", "step": "release", "began_at": "2026-11-21T12:00:01Z",
                                "step_began_at": "2026-11-21T12:00:02Z", "ends_by": "2026-11-21T12:02:42Z" });
        let attachments = [
            attachment("0000:3b:10.0", operation, json!({ "attempt": 2, "attempts": 8, "seconds": 20.0 })),
            attachment("0000:3b:10.2", Value::Null, Value::Null),
        ];
        let event = json!({ "id": 7, "time": "2026-11-21T12:00:01.5Z", "kind": "attachment.state", "host": "node1",
                            "address": "0000:3b:10.0", "from": "attached", "to": "detaching", "reason": null });
        let names = HashMap::from([("10000000-0000-4000-8000-000000000001".to_owned(), "web1".to_owned())]);
        Screen::of(
            Some(&[host("node1", "up"), host("node2", "down")]),
            Some(&attachments),
            &names,
            Some(&[event]),
        )
    }

    #[test]
    fn the_plain_screen_has_every_part() {
        let text = screen().text();
        let has = |line: &str| assert!(text.contains(line), "{line}\n{text}");
        has("HOST    STATE         MODE   ATTACHED   FREE   STUCK   REASON\n");
        has("node2   unreachable   open   0          7      0       connection refused\n");
        has(
            "web1     0000:3b:10.0   detach      12:00:01Z   12:02:42Z   asked the guest to release the device, attempt 2",
        );
        has(
            "web1     0000:3b:10.2   detaching   -           -           the guest has not released it\\u{1b}[2J",
        );
        has("12:00:01Z   attachment.state   node1 0000:3b:10.0   attached -> detaching\n");
        let nothing = Screen::of(None, Some(&[]), &HashMap::new(), None).text();
        assert!(nothing.starts_with("Hosts: you may not see them\n"), "{nothing}");
        assert!(nothing.contains("nothing is being attached or detached"), "{nothing}");
    }

    #[test]
    fn the_screen_fits_a_terminal_of_80_columns_and_24_lines_and_smaller_ones() {
        for (width, height) in [(80, 24), (40, 12), (10, 3), (200, 60)] {
            let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
            terminal.draw(|frame| screen().draw(frame, None)).unwrap();
            if width < 80 {
                continue;
            }
            let drawn = terminal.backend().to_string();
            for shown in ["Hosts", "node2", "web1", "asked the guest", "attachment.state", "q: quit"] {
                assert!(drawn.contains(shown), "{shown} at {width}x{height}:\n{drawn}");
            }
        }
    }

    #[test]
    fn a_problem_is_shown_below_the_last_state() {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| screen().draw(frame, Some("lost the connection"))).unwrap();
        let drawn = terminal.backend().to_string();
        assert!(drawn.contains("not up to date: lost the connection") && drawn.contains("node1"), "{drawn}");
    }
}
