//! What the demo says: the lines of the story, a verdict with its figure per step, the table at the end. As text or JSON.

use anyhow::Result;
use serde_json::{Value as Json, json};
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// What a step came to.
pub struct Verdict {
    /// Did it hold?
    pub pass: bool,
    /// The figure that shows it, in one line.
    pub figure: String,
    /// The same for a program.
    pub details: Json,
}

struct Step {
    name: &'static str,
    pass: bool,
    figure: String,
}

/// The steps so far.
pub struct Report {
    json: bool,
    colour: bool,
    started: Instant,
    steps: Vec<Step>,
}

impl Report {
    /// An empty report.
    pub fn new(json: bool) -> Report {
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Report { json, colour, started: Instant::now(), steps: Vec::new() }
    }

    /// A line of the story; a program does not get it.
    pub fn say(&self, line: &str) {
        if !self.json {
            show(line);
        }
    }

    /// Does somebody watch who would like a progress bar?
    pub fn wants_bars(&self) -> bool {
        !self.json && std::io::stdout().is_terminal() && std::io::stderr().is_terminal()
    }

    /// Takes a step and shows what came of it. An error fails the step and ends the story.
    pub fn step(&mut self, name: &'static str, take: impl FnOnce(&Report) -> Result<Verdict>) -> Result<()> {
        self.say(&format!("\n{}. {name}", self.steps.len() + 1));
        let started = Instant::now();
        let result = take(self);
        let (verdict, error) = match result {
            Ok(verdict) => (verdict, None),
            Err(error) => {
                let figure = error.to_string().lines().next().unwrap_or_default().to_owned();
                (Verdict { pass: false, figure, details: json!({ "error": format!("{error:#}") }) }, Some(error))
            }
        };
        let Verdict { pass, figure, details } = verdict;
        if self.json {
            let seconds = started.elapsed().as_secs_f64();
            show(&json!({ "step": name, "pass": pass, "seconds": seconds, "figures": details }).to_string());
        } else {
            show(&format!("   {}  {figure}", self.mark(pass)));
        }
        self.steps.push(Step { name, pass, figure });
        error.map_or(Ok(()), Err)
    }

    /// The table. True when every step of `all` was taken and passed.
    pub fn finish(&self, all: usize) -> bool {
        let pass = self.steps.len() == all && self.steps.iter().all(|step| step.pass);
        let seconds = self.started.elapsed().as_secs_f64();
        if self.json {
            show(&json!({ "pass": pass, "steps": self.steps.len(), "of": all, "seconds": seconds }).to_string());
            return pass;
        }
        let width = self.steps.iter().map(|step| step.name.len()).max().unwrap_or(0);
        show("");
        for (number, Step { name, pass, figure }) in self.steps.iter().enumerate() {
            show(&format!("{}  {}  {name:<width$}  {figure}", number + 1, self.mark(*pass)));
        }
        let passed = self.steps.iter().filter(|step| step.pass).count();
        show(&format!("\n{}  {passed} of {all} steps passed in {seconds:.1} s", self.mark(pass)));
        pass
    }

    fn mark(&self, pass: bool) -> &'static str {
        match (pass, self.colour) {
            (true, false) => "PASS",
            (false, false) => "FAIL",
            (true, true) => "\x1b[32mPASS\x1b[0m",
            (false, true) => "\x1b[31mFAIL\x1b[0m",
        }
    }
}

/// A closed pipe (`ruvector demo | head`) is no reason to leave anything undone.
fn show(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// A whole number as people write it: 12,345.
pub fn number(value: u64) -> String {
    let digits = value.to_string();
    let lead = digits.len() % 3;
    let groups = digits.as_bytes()[lead..].chunks(3).map(|group| String::from_utf8_lossy(group).into_owned());
    let groups = (lead > 0).then(|| digits[..lead].to_owned()).into_iter().chain(groups);
    groups.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;

    #[test]
    fn numbers_have_groups() {
        assert_eq!([0, 999, 1000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn one_failure_or_one_step_left_out_fails_the_whole() {
        let verdict = |pass| Ok(Verdict { pass, figure: String::new(), details: json!({}) });
        let mut report = Report::new(true);
        report.step("a", |_| verdict(true)).expect("no error");
        assert!(report.finish(1) && !report.finish(2));
        report.step("b", |_| verdict(false)).expect("a FAIL is no error");
        assert!(!report.finish(2));
        let mut report = Report::new(true);
        report.step("c", |_| bail!("broken")).expect_err("an error ends the story");
        assert!(!report.finish(1));
    }
}
