//! A real Chromium, without a window, over WebDriver: the few calls that the page's tests need.
//!
//! Protocol: <https://www.w3.org/TR/webdriver2/>; logs and device settings are chromedriver's own.

use serde_json::{Value as Json, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Long enough for a machine that does ten other things.
const DEADLINE: Duration = Duration::from_secs(60);
/// The name of an element's number in WebDriver's JSON.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";
/// Enter, as WebDriver types it.
pub const ENTER: &str = "\u{e007}";

/// A browser with a profile of its own; it ends with this value.
pub struct Browser {
    driver: Child,
    session: String,
    agent: ureq::Agent,
    _profile: TempDir,
}

impl Browser {
    /// Starts one; none where `RUVECTOR_TEST_NO_BROWSER` says to leave these tests out.
    pub fn start() -> Option<Browser> {
        if std::env::var_os("RUVECTOR_TEST_NO_BROWSER").is_some() {
            println!("SKIPPED: RUVECTOR_TEST_NO_BROWSER is set");
            return None;
        }
        let profile = tempfile::tempdir().expect("a temporary directory");
        let driver = Command::new("chromedriver").arg("--port=0").stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut driver = driver.expect(
            "chromedriver starts: scripts/lib/setup.sh installs it (sudo apt-get install chromium chromium-driver), and \
             RUVECTOR_TEST_NO_BROWSER leaves these tests out",
        );
        let output = BufReader::new(driver.stdout.take().expect("stdout is piped"));
        let port = output.lines().map_while(Result::ok).find_map(|line| {
            let port = line.split("started successfully on port ").nth(1)?.trim_end_matches('.').parse::<u16>();
            port.ok()
        });
        let settings = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(DEADLINE));
        let agent = settings.build().new_agent();
        let session = format!("http://127.0.0.1:{}/session", port.expect("it says where it listens"));
        let mut browser = Browser { driver, session, agent, _profile: profile };
        let profile = browser._profile.path().display();
        let args = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--window-size=1280,900",
            &format!("--user-data-dir={profile}"),
        ];
        let mut options = json!({ "args": args });
        if Path::new("/usr/bin/chromium").exists() {
            options["binary"] = "/usr/bin/chromium".into();
        }
        let wanted = json!({ "goog:chromeOptions": options, "goog:loggingPrefs": { "browser": "ALL" } });
        let made = browser.call("POST", "", &json!({ "capabilities": { "alwaysMatch": wanted } }));
        browser.session += &format!("/{}", made["sessionId"].as_str().expect("a session"));
        Some(browser)
    }

    fn call(&self, method: &str, path: &str, body: &Json) -> Json {
        let url = format!("{}{path}", self.session);
        let answer = match method {
            "GET" => self.agent.get(&url).call(),
            "DELETE" => self.agent.delete(&url).call(),
            _ => self.agent.post(&url).header("content-type", "application/json").send(body.to_string()),
        };
        let mut answer = answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        let text = answer.body_mut().with_config().limit(64 << 20).read_to_string().expect("a whole answer");
        let mut json: Json = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(answer.status().is_success(), "{method} {path} {body}: {json:#}");
        json["value"].take()
    }

    fn devtools(&self, command: &str, params: Json) {
        self.call("POST", "/goog/cdp/execute", &json!({ "cmd": command, "params": params }));
    }

    /// Opens a page.
    pub fn open(&self, url: &str) {
        self.call("POST", "/url", &json!({ "url": url }));
    }

    /// What this script returns.
    pub fn run(&self, script: &str) -> Json {
        self.call("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    fn find(&self, selector: &str) -> String {
        let found = self.call("POST", "/element", &json!({ "using": "css selector", "value": selector }));
        found[ELEMENT].as_str().expect("an element").to_owned()
    }

    /// Clicks where a person could.
    pub fn click(&self, selector: &str) {
        self.call("POST", &format!("/element/{}/click", self.find(selector)), &json!({}));
    }

    /// Types into a field, in place of what was in it.
    pub fn write(&self, selector: &str, text: &str) {
        let element = self.find(selector);
        self.call("POST", &format!("/element/{element}/clear"), &json!({}));
        self.press(selector, text);
    }

    /// Presses these keys in an element.
    pub fn press(&self, selector: &str, keys: &str) {
        self.call("POST", &format!("/element/{}/value", self.find(selector)), &json!({ "text": keys }));
    }

    /// The text of an element as a person sees it; empty where it is hidden.
    pub fn text(&self, selector: &str) -> String {
        let text = self.call("GET", &format!("/element/{}/text", self.find(selector)), &Json::Null);
        text.as_str().expect("text").to_owned()
    }

    /// Waits until an element's text fits.
    pub fn wait_text(&self, selector: &str, fits: impl Fn(&str) -> bool) -> String {
        let started = Instant::now();
        loop {
            let text = self.text(selector);
            if fits(&text) {
                return text;
            }
            assert!(started.elapsed() < DEADLINE, "{selector} is {text:?}; {:#}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What the console said since the last call.
    pub fn log(&self) -> Json {
        self.call("POST", "/se/log", &json!({ "type": "browser" }))
    }

    /// What the device of a reader is like.
    pub fn emulate(&self, width: u32, height: u32, scheme: &str) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", size);
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": features }));
    }

    /// The whole page as a picture (PNG).
    pub fn picture(&self, width: u32, scheme: &str) -> Vec<u8> {
        use base64::Engine;
        self.emulate(width, 900, scheme);
        let height = self.run("return document.documentElement.scrollHeight").as_u64().expect("a height");
        self.emulate(width, height.min(4000) as u32, scheme);
        let picture = self.call("GET", "/screenshot", &Json::Null);
        let picture = picture.as_str().expect("base64").to_owned();
        base64::engine::general_purpose::STANDARD.decode(picture).expect("base64")
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The browser ends with its session; the driver alone would leave it behind.
        let _ = self.agent.delete(&self.session).call();
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
