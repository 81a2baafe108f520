//! The version of the configuration's form: which keys there are, and what they mean.
//!
//! A file, a part in `conf.d`, a bundle's `config` and a model's policy may each say by `version: 1` for which
//! one they were written; what says nothing is read as of the present one. The number tells a program that it
//! does not understand a text, before it takes half of it for something else.
//!
//! How it goes on:
//! - A new setting, a wider range or a further form of a value changes no version: an older program refuses
//!   what it does not know by name, with the place.
//! - The version is raised where a text that was right would be refused or mean something else: a setting that
//!   is renamed, removed or counted in another unit.
//! - A program of version N reads every version up to N. What an older one calls otherwise is translated here,
//!   in the tree, before the table of settings sees it: one function for each step from a version to the next,
//!   applied in turn, with a test on a file that was right before. Values keep their places, so that what is
//!   wrong is told where it stands.
//! - Text of a newer version is refused whole, and nothing else is said of it; the last good configuration
//!   holds.
//! - A fleet's bundle says the version of the oldest program in the fleet, until that is no more.

use super::error::Wrong;

/// The present version.
pub const VERSION: u32 = 1;

/// Its key, at the top of each text.
pub const KEY: &str = "version";

/// Whether a text that names this version is understood.
pub(super) fn check(text: &str) -> Result<(), Wrong> {
    match text.parse::<u32>() {
        Ok(1..=VERSION) => Ok(()),
        Ok(newer) if newer > VERSION => Err(Wrong::new(
            format!(
                "it is written for version {newer} of the configuration, and blochd {} knows \
                 version {VERSION}",
                env!("CARGO_PKG_VERSION")
            ),
            format!("install a newer blochd, or write it for version {VERSION}"),
        )),
        Ok(_) | Err(_) => Err(Wrong::new(
            format!("{text:?} is no version of the configuration"),
            format!("write {KEY}: {VERSION}, or leave it out"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::raw;
    use super::super::{Config, ConfigErrors, FleetPart, Layers, Loaded, LogLevel, Policy, Text};

    fn load(files: &[&str], bundle: Option<&str>) -> Result<Loaded, ConfigErrors> {
        let names = ["/e/agent.yaml", "/e/conf.d/10.yaml"];
        let files: Vec<Text> =
            names.iter().zip(files).map(|(file, text)| Text { file, text }).collect();
        let config = bundle.map(|text| raw::parse(text).unwrap());
        let fleet = config.as_ref().map(|config| FleetPart { file: "bundle", revision: 7, config });
        // As an image of a container may have it.
        let environment = BTreeMap::from([("BLOCHD_VERSION".to_owned(), "0.1.0".to_owned())]);
        let base = Config::default();
        Layers { base, files: &files, fleet, environment: &environment, flags: &[] }.load()
    }

    fn said(text: &str) -> String {
        load(&[text], None).unwrap_err().to_string()
    }

    const NEWER: &str = "it is written for version 2 of the configuration, and blochd ";

    #[test]
    fn this_version_or_none_is_read_and_its_place_is_known() {
        for text in ["version: 1\nlog_level: debug\n", "log_level: debug\n"] {
            let loaded = load(&[text], None).unwrap();
            assert_eq!(loaded.config.log_level, LogLevel::Debug, "{text}");
            assert_eq!(loaded.warnings, []);
        }
        let loaded = load(&["log_level: info\nversion: 1\n"], None).unwrap();
        assert_eq!(loaded.origins["version"].to_string(), "/e/agent.yaml:2:10");
        assert!(Policy::parse("policy.yaml", "version: 1\nqueue_length: 9\n").is_ok());
        let bundle = Some("version: 1\nlog_level: debug\n");
        assert_eq!(load(&[""], bundle).unwrap().config.log_level, LogLevel::Debug);
    }

    #[test]
    fn a_newer_version_is_refused_whole_wherever_it_stands_and_says_what_to_do() {
        // What else there is may mean something else: nothing is said of it.
        let refused = said("budgets: 1\nversion: 2\nlog_level: 7\n");
        assert_eq!(refused.lines().count(), 1, "{refused}");
        assert!(refused.starts_with(&format!("/e/agent.yaml:2:10: {NEWER}")), "{refused}");
        let ends = "knows version 1; install a newer blochd, or write it for version 1";
        assert!(refused.ends_with(ends), "{refused}");
        let part = "version: 2\nmodels: {ocr: {instances: 2}}\n";
        let refused = load(&["version: 1\n", part], None).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("/e/conf.d/10.yaml:1:10: {NEWER}")), "{refused}");
        let refused = load(&[""], Some(part)).unwrap_err().to_string();
        assert!(refused.starts_with("bundle:1:10 (fleet revision 7): "), "{refused}");
        let refused = Policy::parse("policy.yaml", "version: 2\nqueue_length: 9\n").unwrap_err();
        assert!(refused.to_string().starts_with(&format!("policy.yaml:1:10: {NEWER}")));
    }

    #[test]
    fn what_is_no_version_is_told_as_such() {
        for text in ["0", "1.5", "-1", "one", "", "[1]", "{a: 1}"] {
            let refused = said(&format!("version: {text}"));
            let ends = "is no version of the configuration; write version: 1, or leave it out";
            assert!(refused.ends_with(ends), "{refused}");
        }
        assert!(said("version: 1\nversion: 1\n").contains("stands here for the second time"));
        assert!(said("verison: 1\n").ends_with("did you mean `version`?"));
        // Only at the top.
        assert!(said("defaults: {version: 1}").contains("unknown key `version`"));
    }
}
