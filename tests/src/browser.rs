//! Chromium, driven by WebDriver, as a person uses it. Every wait is for a condition.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::Method;
use serde_json::{Value, json};

/// The key of an element in the answers of WebDriver (W3C WebDriver, section 11).
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// The codes of keys (W3C WebDriver, section 15.4.2).
pub const TAB: &str = "\u{E004}";
/// As [`TAB`].
pub const ENTER: &str = "\u{E007}";

/// How long a page may take to show what a test waits for, unless the test says so.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a browser shows pages.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Whether the person prefers dark colours.
    pub dark: bool,
    /// The width and height of the window, in CSS pixels.
    pub size: (u32, u32),
    /// Whether scripts run.
    pub scripts: bool,
}

impl Look {
    /// A wide, light window.
    pub const WIDE: Self = Self { dark: false, size: (1280, 900), scripts: true };
    /// A wide, dark window.
    pub const DARK: Self = Self { dark: true, ..Self::WIDE };
    /// A phone.
    pub const PHONE: Self = Self { size: (360, 760), ..Self::WIDE };
}

/// A browser with a profile of its own. It speaks WebDriver with few requests, so that the tests need no library that
/// changes how the programs under test are built.
pub struct Browser {
    client: reqwest::Client,
    /// The address of the session at chromedriver.
    session: String,
    chromedriver: Child,
    base: String,
    patience: Duration,
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts a browser for the pages of a service.
    pub async fn open(service: &str, look: Look) -> Self {
        let mut command = Command::new("chromedriver");
        let mut chromedriver = command.arg("--port=0").stdout(Stdio::piped()).spawn().expect("chromedriver");
        let output = chromedriver.stdout.take().expect("its output");
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let port = lines.find_map(|line| {
            let (_, rest) = line.split_once("started successfully on port ")?;
            rest.trim_end_matches('.').parse::<u16>().ok()
        });
        let port = port.expect("the port of chromedriver");
        std::thread::spawn(move || lines.for_each(drop));
        let profile = tempfile::tempdir().expect("a directory");
        let (width, height) = look.size;
        let scheme = i32::from(!look.dark);
        let arguments = [
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--hide-scrollbars".to_owned(),
            format!("--window-size={width},{height}"),
            format!("--blink-settings=preferredColorScheme={scheme},scriptEnabled={}", look.scripts),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        // A phone is emulated, because a window cannot be so narrow.
        let mut options = json!({ "args": arguments });
        if width < 500 {
            let metrics = json!({ "width": width, "height": height, "pixelRatio": 1.0, "touch": false });
            options["mobileEmulation"] = json!({ "deviceMetrics": metrics });
        }
        let wanted = json!({ "capabilities": { "alwaysMatch": { "browserName": "chrome", "goog:chromeOptions": options } } });
        crate::api::use_ring();
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let at = format!("http://127.0.0.1:{port}/session");
        let made = ask(&client, Method::POST, &at, Some(&wanted)).await.expect("a browser");
        let session = format!("{at}/{}", made["sessionId"].as_str().expect("a session"));
        Self {
            client,
            session,
            chromedriver,
            base: service.to_owned(),
            patience: PATIENCE,
            _profile: profile,
        }
    }

    /// The same browser, which waits longer for a page to show something.
    #[must_use]
    pub fn patient(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    async fn send(&self, path: &str, body: Value) -> Result<Value, String> {
        ask(&self.client, Method::POST, &format!("{}{path}", self.session), Some(&body)).await
    }

    async fn read(&self, path: &str) -> Result<Value, String> {
        ask(&self.client, Method::GET, &format!("{}{path}", self.session), None).await
    }

    /// Opens a page by its path.
    pub async fn go(&self, path: &str) {
        self.send("/url", json!({ "url": format!("{}{path}", self.base) })).await.expect("a page");
    }

    /// The path and query of the page.
    pub async fn place(&self) -> String {
        let url = self.read("/url").await.expect("an address");
        let url = url.as_str().unwrap_or_default();
        url.strip_prefix(&self.base).unwrap_or(url).to_owned()
    }

    /// Waits until a request succeeds.
    async fn once(&self, what: &str, so: impl AsyncFn() -> Result<Value, String>) -> Value {
        let end = Instant::now() + self.patience;
        loop {
            match so().await {
                Ok(value) => return value,
                Err(_) if Instant::now() < end => tokio::time::sleep(Duration::from_millis(50)).await,
                Err(error) => panic!("{what}: {error}\n{}", self.text().await),
            }
        }
    }

    async fn element(&self, using: &str, value: &str) -> Result<String, String> {
        let found = self.send("/element", json!({ "using": using, "value": value })).await?;
        found[ELEMENT].as_str().map(str::to_owned).ok_or_else(|| found.to_string())
    }

    /// Waits until a selector finds an element.
    pub async fn find(&self, selector: &str) {
        self.once(selector, async || self.element("css selector", selector).await.map(Value::from)).await;
    }

    /// Clicks the element that a selector finds, once there is one.
    pub async fn click(&self, selector: &str) {
        self.press_on("css selector", selector).await;
    }

    /// Clicks the link with a text.
    pub async fn follow(&self, text: &str) {
        self.press_on("partial link text", text).await;
    }

    async fn press_on(&self, using: &str, value: &str) {
        self.once(value, async || {
            let element = self.element(using, value).await?;
            self.send(&format!("/element/{element}/click"), json!({})).await
        })
        .await;
    }

    /// Types into a field.
    pub async fn write(&self, selector: &str, text: &str) {
        self.once(selector, async || {
            let element = self.element("css selector", selector).await?;
            self.send(&format!("/element/{element}/value"), json!({ "text": text })).await
        })
        .await;
    }

    async fn active(&self) -> String {
        let active = self.read("/element/active").await.expect("a focus");
        active[ELEMENT].as_str().expect("a focus").to_owned()
    }

    /// Presses a key of the element that has the focus.
    pub async fn press(&self, key: &str) {
        let path = format!("/element/{}/value", self.active().await);
        self.send(&path, json!({ "text": key })).await.expect("a key");
    }

    /// The text of the element that has the focus.
    pub async fn focused(&self) -> String {
        let text = self.read(&format!("/element/{}/text", self.active().await)).await;
        text.expect("a text").as_str().unwrap_or_default().trim().to_owned()
    }

    /// The text of the page as a person sees it.
    pub async fn text(&self) -> String {
        let Ok(body) = self.element("css selector", "body").await else { return String::new() };
        let text = self.read(&format!("/element/{body}/text")).await;
        text.ok().and_then(|text| text.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// Waits until the page shows a text.
    pub async fn until(&self, text: &str) {
        let shown = async || match self.text().await {
            page if page.contains(text) => Ok(Value::Null),
            _ => Err("the text is missing".to_owned()),
        };
        self.once(&format!("{text:?}"), shown).await;
    }

    /// Runs a script, and returns its value.
    pub async fn script(&self, script: &str) -> Value {
        self.send("/execute/sync", json!({ "script": script, "args": [] })).await.expect("a script")
    }

    /// Returns what axe-core finds wrong with the page, as one line a rule.
    pub async fn barriers(&self, axe: &str) -> Vec<String> {
        self.script(axe).await;
        let run = "const done = arguments[arguments.length - 1]; axe.run({ resultTypes: ['violations'] }).then( \
                   (found) => done(found.violations), (error) => done([{ id: String(error), nodes: [] }]));";
        let found = self.send("/execute/async", json!({ "script": run, "args": [] })).await.expect("axe");
        let lines = found.as_array().into_iter().flatten().map(|rule| {
            let nodes = rule["nodes"].as_array().into_iter().flatten().take(3);
            let nodes = nodes.map(|node| node["html"].to_string()).collect::<Vec<_>>();
            format!("{}: {}", rule["id"], nodes.join(" | "))
        });
        lines.collect()
    }

    /// Writes a picture of the page, also of what is below the window.
    pub async fn picture(&self, file: &Path) {
        let size = "const page = document.documentElement; return [page.clientWidth, page.scrollHeight]";
        let size = self.script(size).await;
        self.capture(&size, file).await;
    }

    /// Writes one picture of the upper parts of several pictures, side by side.
    pub async fn collage(&self, pictures: &[PathBuf], height: u32, file: &Path) {
        self.send("/url", json!({ "url": "about:blank" })).await.expect("an empty page");
        let read = |picture: &PathBuf| {
            let image = std::fs::read(picture).expect("a picture");
            format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(image))
        };
        let sources: Vec<_> = pictures.iter().map(read).collect();
        let script = "const [sources, height, done] = arguments; const body = document.body; \
                      body.style.cssText = `margin: 0; display: flex; gap: 24px; width: max-content; \
                      height: ${height}px; overflow: hidden; align-items: flex-start`; \
                      const images = sources.map((source) => Object.assign(new Image(), { src: source })); \
                      body.append(...images); Promise.all(images.map((image) => image.decode())).then( \
                      () => done([body.offsetWidth, height]), (error) => done(String(error)));";
        let wanted = json!({ "script": script, "args": [sources, height] });
        let size = self.send("/execute/async", wanted).await.expect("the pictures");
        assert!(size.is_array(), "{size}");
        self.capture(&size, file).await;
    }

    /// Writes a picture of the page from its upper left corner on.
    async fn capture(&self, size: &Value, file: &Path) {
        let clip = json!({ "x": 0, "y": 0, "width": size[0], "height": size[1], "scale": 1 });
        let wanted = json!({ "captureBeyondViewport": true, "clip": clip });
        let command = json!({ "cmd": "Page.captureScreenshot", "params": wanted });
        let image = self.send("/goog/cdp/execute", command).await.expect("a picture");
        let image = image["data"].as_str().expect("base64");
        let image = base64::engine::general_purpose::STANDARD.decode(image).expect("base64");
        std::fs::write(file, image).expect("write a file");
    }

    /// Ends the browser.
    pub async fn close(self) {
        let _ = ask(&self.client, Method::DELETE, &self.session, None).await;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.chromedriver.kill();
        let _ = self.chromedriver.wait();
    }
}

/// Sends a command of WebDriver, and returns its value, or the error.
async fn ask(
    client: &reqwest::Client,
    method: Method,
    at: &str,
    body: Option<&Value>,
) -> Result<Value, String> {
    let request = client.request(method, at);
    let request = match body {
        Some(body) => request.header("content-type", "application/json").body(body.to_string()),
        None => request,
    };
    let text = async { request.send().await?.text().await }.await.map_err(|error| error.to_string())?;
    let mut answer: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    match answer["value"]["error"].as_str() {
        Some(error) => Err(format!("{error}: {}", answer["value"]["message"].as_str().unwrap_or_default())),
        None => Ok(answer["value"].take()),
    }
}

/// The script of axe-core.
pub fn axe() -> String {
    let file: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/axe/axe.min.js");
    std::fs::read_to_string(file).expect("axe-core")
}
