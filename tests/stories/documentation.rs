//! The pages for users. Each block `console` of README.md and docs/ is run: its commands, against a made-up host of its own
//! for each page, and their outputs are compared. `HOTSLOT_RECORD=1` writes the outputs that differ into the pages.
//!
//! The ids and the address of the service on a page stand for those of the run. Times are not compared. A line `…` stands
//! for any lines.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hotslot_tests::binary;
use hotslot_tests::recorded::is_recording;
use regex::{Captures, Regex};

/// The address of the service in the pages.
const URL: &str = "http://127.0.0.1:9774";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns README.md and the Markdown files in docs/.
fn pages() -> Vec<PathBuf> {
    let docs = root().join("docs");
    let folders = [docs.clone(), docs.join("reference")];
    let files = folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap());
    let files = files.map(|file| file.unwrap().path()).filter(|file| file.extension() == Some("md".as_ref()));
    let mut pages: Vec<_> = files.chain([root().join("README.md")]).collect();
    pages.sort();
    pages
}

/// `hotslot serve --simulate`, and how to reach it.
struct Simulated {
    child: Child,
    url: String,
    token: String,
    /// The directory of the made-up host.
    host: String,
    /// The directory in which the commands run.
    dir: tempfile::TempDir,
}

impl Simulated {
    /// Starts the service. Another program may take the port that it has found free, so it is started again when it ends.
    fn start() -> Self {
        (0..20).find_map(|_| Self::try_start()).expect("hotslot serve --simulate starts")
    }

    fn try_start() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(binary())
            .args(["serve", "--simulate"])
            .env("TMPDIR", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("start the service");
        let printed = Regex::new(r"hotslot sim ([^ ]+) |HOTSLOT_URL=([^ ]+)|HOTSLOT_TOKEN=([^ ]+)").unwrap();
        let ((mut host, mut url), lines) =
            ((None, None), BufReader::new(child.stdout.take().expect("its output")).lines());
        for line in lines.map_while(Result::ok) {
            let Some(found) = printed.captures(&line) else { continue };
            let text = |group| found.get(group).map(|found| found.as_str().to_owned());
            host = host.or_else(|| text(1));
            url = url.or_else(|| text(2));
            if let (Some(url), Some(token), Some(host)) = (&url, text(3), &host) {
                let simulated = Self { child, url: url.clone(), token, host: host.clone(), dir };
                simulated.run("timeout 120 bash -c 'until hotslot status >/dev/null; do sleep 0.05; done'");
                return Some(simulated);
            }
        }
        child.wait().unwrap();
        None
    }

    /// Runs a line of a shell, and returns everything that it prints.
    #[track_caller]
    fn run(&self, line: &str) -> String {
        let path = format!("{}:{}", binary().parent().unwrap().display(), std::env::var("PATH").unwrap());
        let output = Command::new("bash")
            .args(["-c", &format!("exec 2>&1\n{line}")])
            .env("PATH", path)
            .env("HOTSLOT_URL", &self.url)
            .env("HOTSLOT_TOKEN", &self.token)
            .env("MADE_UP_HOST", &self.host)
            .env_remove("HOTSLOT_CONFIG")
            .current_dir(self.dir.path())
            .output()
            .expect("bash");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "`{line}` ended with {}:\n{text}", output.status);
        text
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        // It removes the made-up host when it is asked to end.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// The ids of a page and those of the run in their place.
struct Ids {
    pattern: Regex,
    of_run: BTreeMap<String, String>,
}

impl Ids {
    fn new() -> Self {
        let pattern =
            Regex::new(r"(?-u:\b)[0-9a-f]{8}(?:(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})?(?-u:\b)").unwrap();
        Self { pattern, of_run: BTreeMap::new() }
    }

    /// Learns from an output of the run, and the same output on the page, which ids stand for which.
    fn learn(&mut self, page: &str, run: &str) {
        let pairs = self.pattern.find_iter(page).zip(self.pattern.find_iter(run));
        for (page, run) in pairs.map(|(page, run)| (page.as_str(), run.as_str())) {
            if page.len() == run.len() {
                self.of_run.entry(page.to_owned()).or_insert_with(|| run.to_owned());
                self.of_run.entry(page[..8].to_owned()).or_insert_with(|| run[..8].to_owned());
            }
        }
    }

    fn replace(&self, text: &str, other: impl Fn(&str) -> Option<String>) -> String {
        let replaced = |found: &Captures<'_>| other(&found[0]).unwrap_or_else(|| found[0].to_owned());
        self.pattern.replace_all(text, replaced).into_owned()
    }

    fn to_run(&self, text: &str) -> String {
        self.replace(text, |id| self.of_run.get(id).cloned())
    }

    fn to_page(&self, text: &str) -> String {
        self.replace(text, |id| self.of_run.iter().find(|(_, run)| *run == id).map(|(page, _)| page.clone()))
    }
}

/// Removes white space at the ends of lines, and empty lines at the end.
fn tidy(text: &str) -> String {
    let lines: Vec<_> = text.trim_end().lines().map(str::trim_end).collect();
    if lines.is_empty() { String::new() } else { lines.join("\n") + "\n" }
}

/// Replaces what differs between two runs.
fn without_times(text: &str) -> String {
    const DAY: &str = "[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]+)?Z?";
    let times =
        Regex::new(&format!("{DAY}|req-[0-9a-f-]{{36}}|(?-u:\\b)[0-9]+([.][0-9]+)? m?s(?-u:\\b)")).unwrap();
    times.replace_all(text, "TIME").into_owned()
}

/// Whether the output on a page is that of a run.
fn agree(page: &str, run: &str) -> bool {
    let (page, run) = (without_times(page.trim_end()), without_times(run.trim_end()));
    let parts: Vec<_> = page
        .split('\n')
        .map(|line| match line.trim() {
            "…" => "(?s:.*)".to_owned(),
            _ => regex::escape(line.trim_end()),
        })
        .collect();
    let run: Vec<_> = run.lines().map(str::trim_end).collect();
    Regex::new(&format!("^{}$", parts.join("\n"))).unwrap().is_match(&run.join("\n"))
}

/// Runs the commands of a page and returns the page with the outputs of the run where they differ.
fn run_page(text: &str, host: &Simulated) -> String {
    let (mut ids, mut written, mut lines) = (Ids::new(), String::new(), text.lines().peekable());
    let mut in_console = false;
    while let Some(line) = lines.next() {
        written += &format!("{line}\n");
        if line.starts_with("```") {
            in_console = line == "```console";
        }
        if !in_console || !line.starts_with("$ ") {
            continue;
        }
        let mut command = line[2..].to_owned();
        while command.ends_with('\\') {
            let more = lines.next().expect("the rest of a command");
            written += &format!("{more}\n");
            command = format!("{command}\n{more}");
        }
        let mut expected = String::new();
        while let Some(output) = lines.next_if(|line| !line.starts_with("$ ") && !line.starts_with("```")) {
            expected += &format!("{output}\n");
        }
        let command = ids.to_run(&command.replace(URL, &host.url));
        let printed =
            host.run(&command).replace(&host.url, URL).replace(&host.host, "/tmp/hotslot-1a2b3c/host");
        ids.learn(&expected, &printed);
        let found = tidy(&ids.to_page(&printed));
        written.push_str(if agree(&expected, &found) { &expected } else { &found });
    }
    written
}

#[test]
fn the_commands_of_each_page_have_the_outputs_that_it_shows() {
    let pages: Vec<_> =
        pages().into_iter().map(|file| (std::fs::read_to_string(&file).unwrap(), file)).collect();
    let with_commands: Vec<_> = pages.iter().filter(|(text, _)| text.contains("```console\n$ ")).collect();
    assert!(with_commands.len() >= 3, "README.md, the first hour and the tasks have commands");
    for (text, file) in with_commands {
        println!("{}", file.display());
        let found = run_page(text, &Simulated::start());
        if is_recording() {
            std::fs::write(file, found).unwrap();
        } else {
            let different = text.lines().zip(found.lines()).find(|(page, run)| page != run);
            assert!(*text == found, "{}: {different:#?}\nthe outputs of the run:\n{found}", file.display());
        }
    }
}

/// A reader sees which commands of the first pages were not run.
#[test]
fn blocks_that_are_not_run_say_where_they_would() {
    for page in ["first-hour.md", "how-to.md", "leaving.md"] {
        let text = std::fs::read_to_string(root().join("docs").join(page)).unwrap();
        for block in text.split("```sh\n").skip(1) {
            let first = block.lines().next().unwrap();
            assert!(
                first.starts_with("# On "),
                "{page}: the block that begins with `{first}` says where to run it"
            );
        }
    }
}

/// Each entry of docs/troubleshooting.md is about words that hotslot says.
#[test]
fn every_entry_of_troubleshooting_is_about_a_message() {
    let mut sources = String::new();
    let mut folders: Vec<_> =
        ["driver/src", "api/model/src", "api/store/src", "api/service/src", "api/src", "cli/src"]
            .map(|it| root().join(it))
            .into();
    while let Some(folder) = folders.pop() {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                sources += &std::fs::read_to_string(&path).unwrap();
            }
        }
    }
    // A text may be written on several lines.
    let sources = Regex::new(r"\\\n *").unwrap().replace_all(&sources, "");
    let page = std::fs::read_to_string(root().join("docs/troubleshooting.md")).unwrap();
    let headings: Vec<_> = page.lines().filter(|line| line.starts_with("### ")).collect();
    assert!(headings.len() > 20, "{headings:?}");
    for heading in headings {
        let words: Vec<_> = heading.split('`').skip(1).step_by(2).collect();
        assert!(!words.is_empty(), "{heading}");
        for words in words {
            assert!(sources.contains(words), "no message has the words of `{heading}`");
        }
    }
}
