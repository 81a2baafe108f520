//! Plugins: libraries with execution providers, by the names that the configuration gives them.

use std::path::PathBuf;

use crate::limits;

use super::checked::Config;
use super::error::{Origin, Problem, Wrong};
use super::layers::Origins;
use super::providers::Plugin;
use super::schema::{PLUGIN, Setting, lookup};
use super::values::Absent;

/// Names that stand for something else.
const TAKEN: &[&str] = &["auto", "cann", "cpu", "none"];

impl Default for Plugin {
    /// One of which nothing is said yet: without a library it is refused.
    fn default() -> Self {
        Self {
            name: String::new(),
            library: PathBuf::new(),
            sha256: String::new(),
            provider: None,
            device: 0,
            options: std::collections::BTreeMap::new(),
        }
    }
}

/// The library's first provider is written as `auto`.
impl Absent for String {
    const WORD: &'static str = "auto";
}

/// What a layer says of a plugin: one thing of it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Said {
    pub name: String,
    pub part: Part,
    pub text: String,
    pub origin: Origin,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Part {
    /// That there is one.
    Itself,
    Setting(&'static Setting<Plugin>),
    /// One of the provider's own options.
    Option(String),
}

impl Said {
    /// Takes it in, over what was said before; parts of which nothing new is said stay.
    pub fn merge(self, config: &mut Config, origins: &mut Origins) -> Result<(), Problem> {
        let Self { name, part, text, origin } = self;
        let fresh = || Plugin { name: name.clone(), ..Plugin::default() };
        let plugin = config.plugins.entry(name.clone()).or_insert_with(fresh);
        let path = match part {
            Part::Itself => {
                origins.entry(format!("plugins.{name}")).or_insert(origin);
                return Ok(());
            }
            Part::Setting(setting) => {
                (setting.set)(plugin, &text).map_err(|wrong| wrong.at(&origin))?;
                format!("plugins.{name}.{}", setting.path)
            }
            Part::Option(key) => {
                check_option(&key, &text).map_err(|wrong| wrong.at(&origin))?;
                let path = format!("plugins.{name}.options.{key}");
                plugin.options.insert(key, text);
                path
            }
        };
        origins.entry(format!("plugins.{name}")).or_insert_with(|| origin.clone());
        origins.insert(path, origin);
        Ok(())
    }
}

/// Whether a plugin may be called so.
pub(super) fn check_name(name: &str) -> Result<(), Wrong> {
    let right = format!(
        "write 1 to {} of a-z, 0-9, dots, dashes and underscores, a letter or digit first",
        limits::PLUGIN_NAME_BYTES
    );
    if TAKEN.contains(&name) {
        return Err(Wrong::new(
            format!("`{name}` stands for something else"),
            "write another name",
        ));
    }
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let all = name.bytes().all(|byte| plain(byte) || matches!(byte, b'_' | b'.' | b'-'));
    let first = name.bytes().next().is_some_and(plain);
    if all && first && name.len() <= limits::PLUGIN_NAME_BYTES {
        return Ok(());
    }
    Err(Wrong::new(format!("{name:?} is no name of an execution provider"), right))
}

/// Whether a provider can be handed such an option.
pub(super) fn check_option(key: &str, text: &str) -> Result<(), Wrong> {
    let is_plain = |byte: u8| byte.is_ascii_graphic();
    if key.is_empty() || key.len() > limits::OPTION_NAME_BYTES || !key.bytes().all(is_plain) {
        let what = format!("{key:?} is no name of an option");
        let most = limits::OPTION_NAME_BYTES;
        return Err(Wrong::new(what, format!("write 1 to {most} letters without blanks")));
    }
    if text.len() > limits::OPTION_BYTES || text.contains('\0') {
        let what = format!("the option `{key}` has {} bytes", text.len());
        let most = limits::OPTION_BYTES;
        return Err(Wrong::new(what, format!("write at most {most}, none of them zero")));
    }
    Ok(())
}

/// 64 hexadecimal digits, kept in lower case.
pub(super) fn sha256(text: &str) -> Result<String, Wrong> {
    let text = text.trim();
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    let right = "write the 64 hexadecimal digits that `sha256sum` says of the library";
    Err(Wrong::new(format!("{text:?} is no SHA-256"), right))
}

/// The name of a provider in the library, or `auto`: its first.
pub(super) fn provider(text: &str) -> Result<Option<String>, Wrong> {
    let text = text.trim();
    if text == String::WORD {
        return Ok(None);
    }
    let most = limits::PROVIDER_NAME_BYTES;
    if text.is_empty() || text.len() > most || !text.bytes().all(|b| b.is_ascii_graphic()) {
        let right = format!("write a name of 1 to {most} letters without blanks, or auto");
        return Err(Wrong::new(format!("{text:?} is no name of a provider"), right));
    }
    Ok(Some(text.to_owned()))
}

/// Finds what a path from the environment or a flag means, without its `plugins.`: `NAME.device`,
/// `NAME.options.KEY`.
pub(super) fn find(rest: &str, text: &str, origin: &Origin) -> Result<Said, Wrong> {
    let (name, part) = match rest.split_once(".options.") {
        Some((name, key)) => (name, Part::Option(key.to_owned())),
        None => {
            let (name, setting) = rest.rsplit_once('.').ok_or_else(|| {
                Wrong::new("no setting of the plugin is named", "write plugins.NAME.device")
            })?;
            (name, Part::Setting(lookup(PLUGIN, setting, text)?.0))
        }
    };
    check_name(name)?;
    Ok(Said { name: name.to_owned(), part, text: text.to_owned(), origin: origin.clone() })
}

/// What makes a plugin one, and how many there may be.
pub(super) fn check(config: &Config, origins: &Origins, problems: &mut Vec<Problem>) {
    let origin =
        |name: &str| origins.get(&format!("plugins.{name}")).cloned().unwrap_or(Origin::Default);
    for (name, plugin) in &config.plugins {
        let mut lacks = |what: &str, right: &str| {
            problems.push(Problem {
                origin: origin(name),
                what: format!("the plugin `{name}` has no {what}"),
                right: right.to_owned(),
            });
        };
        if plugin.library.as_os_str().is_empty() {
            lacks("library", "write `library:` and the path of the vendor's library");
        }
        if plugin.sha256.is_empty() {
            lacks("sha256", "write `sha256:` and what `sha256sum` says of the library");
        }
    }
    if let Some(name) = config.plugins.keys().nth(limits::PLUGINS) {
        problems.push(Problem {
            origin: origin(name),
            what: format!("{} plugins are too many", config.plugins.len()),
            right: format!("describe at most {}", limits::PLUGINS),
        });
    }
}

/// Every setting's path below `plugins.NAME.` and the text of its value, the provider's own options last.
pub fn plugin_settings(plugin: &Plugin) -> Vec<(String, String)> {
    let own = PLUGIN.iter().map(|setting| (setting.path.to_owned(), (setting.get)(plugin)));
    let options = plugin.options.iter().map(|(key, text)| (format!("options.{key}"), text.clone()));
    own.chain(options).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Config, Flag, Layers, Loaded, Policy, Text, Wanted, settings};

    const HASH: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn load(texts: &[&str], environment: &[(&str, &str)]) -> Result<Loaded, String> {
        let names = ["/e/agent.yaml", "/e/conf.d/10.yaml", "/e/conf.d/20.yaml"];
        let files: Vec<Text> =
            names.iter().zip(texts).map(|(file, text)| Text { file, text }).collect();
        let own = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        let environment: BTreeMap<String, String> = environment.iter().map(own).collect();
        let (base, environment) = (Config::default(), &environment);
        let layers = Layers { base, files: &files, fleet: None, environment, flags: &[] };
        layers.load().map_err(|errors| errors.to_string())
    }

    fn mlu() -> String {
        format!("plugins:\n  mlu:\n    library: lib/ep.so\n    sha256: {HASH}\n")
    }

    #[test]
    fn a_plugin_is_read_whole_and_a_later_part_changes_only_what_it_names() {
        let more = "    provider: MLUExecutionProvider\n    device: 1\n    \
                    options: {cores: 4, fp16: true}\n";
        let first = mlu() + more;
        let later = "plugins: {mlu: {device: 2, options: {cores: 8}}}\n";
        let loaded = load(&[&first, later], &[("BLOCHD_PLUGINS__MLU__OPTIONS__Log", "x")]).unwrap();
        assert_eq!(loaded.warnings, []);
        let plugin = &loaded.config.plugins["mlu"];
        let option = |key: &str, text: &str| (key.to_owned(), text.to_owned());
        let expected = Plugin {
            name: "mlu".to_owned(),
            library: "/e/lib/ep.so".into(),
            sha256: HASH.to_owned(),
            provider: Some("MLUExecutionProvider".to_owned()),
            device: 2,
            options: [option("cores", "8"), option("fp16", "true"), option("Log", "x")].into(),
        };
        assert_eq!(*plugin, expected);
        let origin = |path: &str| loaded.origins[path].to_string();
        assert_eq!(origin("plugins.mlu.library"), "/e/agent.yaml:3:14");
        assert_eq!(origin("plugins.mlu.device"), "/e/conf.d/10.yaml:1:25");
        let log = "environment variable BLOCHD_PLUGINS__MLU__OPTIONS__Log";
        assert_eq!(origin("plugins.mlu.options.Log"), log);
        let shown = plugin_settings(plugin);
        assert!(shown.contains(&option("device", "2")), "{shown:?}");
        assert!(shown.contains(&option("options.cores", "8")), "{shown:?}");
    }

    #[test]
    fn what_is_wrong_with_a_plugin_is_said_at_its_place() {
        let upper = HASH.to_uppercase();
        let right = format!("plugins: {{a: {{library: /l.so, sha256: {upper}}}}}");
        assert_eq!(load(&[&right], &[]).unwrap().config.plugins["a"].sha256, HASH);
        let many: String =
            (0..9).map(|n| format!("  p{n}: {{library: /l, sha256: {HASH}}}\n")).collect();
        let cases = [
            (
                format!("plugins:\n  mlu: {{sha256: {HASH}}}"),
                "2:3: the plugin `mlu` has no library; write `library:`",
            ),
            (
                "plugins:\n  mlu: {library: /l.so}".to_owned(),
                "2:3: the plugin `mlu` has no sha256;",
            ),
            (
                "plugins: {mlu: {library: /l.so, sha256: 12ab}}".to_owned(),
                "1:41: \"12ab\" is no SHA-256; write the 64 hexadecimal digits",
            ),
            (mlu() + "    devise: 1\n", "5:5: unknown key `devise`; did you mean `device`?"),
            (mlu() + "    device: 256\n", "5:13: 256 is out of range; write a whole number"),
            (mlu() + "    options: {a: [1]}\n", "5:18: the option `a` has no single value;"),
            (mlu() + "    options: {a b: 1}\n", "5:20: \"a b\" is no name of an option;"),
            (mlu() + "    library: /other\n", "5:5: `library` stands here for the second time"),
            ("plugins: {cpu: {}}".to_owned(), "1:11: `cpu` stands for something else;"),
            ("plugins: {Mlu: {}}".to_owned(), "1:11: \"Mlu\" is no name of an execution provider;"),
            ("plugins: {-a: {}}".to_owned(), "1:11: \"-a\" is no name of an execution provider;"),
            (format!("plugins:\n{many}"), "10:3: 9 plugins are too many; describe at most 8"),
        ];
        for (text, expected) in cases {
            let said = load(&[&text], &[]).unwrap_err();
            let expected = format!("/e/agent.yaml:{expected}");
            assert!(said.starts_with(&expected), "{text}: {said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
        let flag = |path: &str, text: &str| {
            let flags =
                [Flag { flag: "--set".into(), path: path.to_owned(), text: text.to_owned() }];
            let (base, environment) = (Config::default(), &BTreeMap::new());
            Layers { base, files: &[], fleet: None, environment, flags: &flags }
                .load()
                .unwrap_err()
                .to_string()
        };
        assert!(flag("plugins.mlu.devise", "1").starts_with("flag --set: there is no setting"));
        assert!(flag("plugins.mlu", "1").contains("no setting of the plugin is named"));
        assert!(flag("plugins.mlu.device", "1").contains("the plugin `mlu` has no library"));
    }

    #[test]
    fn a_model_names_what_may_run_it_and_unknown_names_are_told_with_the_known_ones() {
        let providers = |text: &str, model: &str| {
            let config = load(&[text], &[]).map(|loaded| loaded.config);
            config.map(|config| config.model(model, None).unwrap().execution_providers.0)
        };
        assert_eq!(providers("", "m").unwrap(), [Wanted::Auto]);
        let text = mlu()
            + "defaults: {execution_providers: [mlu, cann, cpu]}\n\
               models: {m: {execution_providers: cpu}}\n";
        let named = [Wanted::Plugin("mlu".to_owned()), Wanted::Cann, Wanted::Cpu];
        assert_eq!(providers(&text, "other").unwrap(), named);
        assert_eq!(providers(&text, "m").unwrap(), [Wanted::Cpu]);
        for (list, expected) in [
            ("[tpu]", "1:33: there is no execution provider `tpu`; known here: auto, cann, cpu;"),
            ("[cpu, cpu]", "1:33: cpu stands twice; remove one"),
            ("[GPU]", "1:34: \"GPU\" is no name of an execution provider; write auto, cpu, cann"),
            ("[]", "1:33: no execution provider is named; write auto"),
            ("{a: 1}", "1:33: `execution_providers` has a value of the wrong form; write a list"),
        ] {
            let text = format!("defaults: {{execution_providers: {list}}}");
            let said = load(&[&text], &[]).unwrap_err();
            assert!(said.starts_with(&format!("/e/agent.yaml:{expected}")), "{list}: {said}");
        }
        // Policies are read alone, and held against the plugins with the rest.
        let config = load(&[&mlu()], &[]).unwrap().config;
        let policy = Policy::parse("p.yaml", "execution_providers: [mlu, npu]").unwrap();
        let said = config.model("m", Some(&policy)).unwrap_err().to_string();
        let expected = "p.yaml:1:22: there is no execution provider `npu`; known here: auto, cann, \
                        cpu, mlu;";
        assert!(said.starts_with(expected), "{said}");
    }

    #[test]
    fn options_of_cann_are_checked_handed_on_in_its_words_and_shown_in_ours() {
        let text = "cann:\n  device_id: 3\n  npu_mem_limit: 2GiB\n  \
                    arena_extend_strategy: kSameAsRequested\n  enable_cann_graph: true\n  \
                    precision_mode: must_keep_origin_dtype\n  \
                    op_select_impl_mode: high_precision\n  \
                    optypelist_for_implmode: [Pooling, SoftmaxV2]\n  dump_om_model: false\n";
        let config = load(&[text], &[]).unwrap().config;
        assert_eq!(config.cann.device_id, 3);
        let options: Vec<_> = config.cann.options.iter().map(|(k, v)| format!("{k}={v}")).collect();
        let expected = [
            "arena_extend_strategy=kSameAsRequested",
            "dump_om_model=0",
            "enable_cann_graph=1",
            "npu_mem_limit=2147483648",
            "op_select_impl_mode=high_precision",
            "optypelist_for_implmode=Pooling,SoftmaxV2",
            "precision_mode=must_keep_origin_dtype",
        ];
        assert_eq!(options, expected);
        let shown: BTreeMap<String, String> = settings(&config).into_iter().collect();
        let shown = |path: &str| shown[&format!("cann.{path}")].as_str();
        assert_eq!((shown("npu_mem_limit"), shown("enable_cann_graph")), ("2GiB", "true"));
        assert_eq!((shown("dump_om_model"), shown("dump_graphs")), ("false", "auto"));
        assert_eq!(shown("optypelist_for_implmode"), "Pooling, SoftmaxV2");
        // A later part leaves an option to the provider again.
        let unset = load(&[text, "cann: {precision_mode: auto}"], &[]).unwrap().config;
        assert!(!unset.cann.options.contains_key("precision_mode"));
        for (text, expected) in [
            ("precision_mode: fp16", "1:24: \"fp16\" is not known;"),
            ("enable_cann_graph: 2", "1:27: \"2\" is not yes or no; write true or false, or auto"),
            ("optypelist_for_implmode: [a b]", "1:34: \"a b\" is no type of operators;"),
            ("npu_mem_limit: 4", "1:23: \"4\" is not a size;"),
            (
                "precision_mod: x",
                "1:8: unknown key `precision_mod`; did you mean `precision_mode`?",
            ),
        ] {
            let said = load(&[&format!("cann: {{{text}}}")], &[]).unwrap_err();
            assert!(said.starts_with(&format!("/e/agent.yaml:{expected}")), "{text}: {said}");
        }
    }

    #[test]
    fn a_change_of_what_may_run_models_touches_every_model() {
        let old = load(&[&mlu()], &[]).unwrap().config;
        let new = load(&[&mlu(), "plugins: {mlu: {options: {cores: 2}}}"], &[]).unwrap().config;
        let diff = Config::diff(&old, &new);
        let change = &diff.changes[0];
        let told = (change.path.as_str(), change.from.as_str(), change.to.as_str());
        assert_eq!(told, ("plugins.mlu.options.cores", "none", "2"));
        assert!(diff.touches("m") && diff.restart().next().is_none());
        let cann = load(&[&mlu(), "cann: {device_id: 1}"], &[]).unwrap().config;
        assert!(Config::diff(&old, &cann).touches("m"));
        assert!(Config::diff(&old, &old).is_empty() && !Config::diff(&old, &old).touches("m"));
    }
}
