//! The provider's options, as each release of ONNX Runtime has them: it refuses a name that it does not know,
//! and names came and went.
//!
//! Found out by giving each to the provider libraries of the wheels onnxruntime-cann 1.22.1, 1.22.2, 1.23.1,
//! 1.23.2 and 1.24.4 (on stand-ins for CANN), and for what comes after them read in ONNX Runtime's
//! `core/providers/cann/cann_execution_provider_info.cc`.

use crate::config::Cann;

/// The minor version from which on an option is known, or up to which.
type Minor = u32;

/// What an option's value must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// 0 or 1.
    Flag,
    /// A number of bytes.
    Bytes,
    /// One of these words, which the provider itself checks.
    OneOf(&'static [&'static str]),
    /// What CANN makes of it: its words differ by version and chip.
    Words,
}

struct Known {
    name: &'static str,
    from: Minor,
    /// The last that has it.
    to: Minor,
    kind: Kind,
    /// What does the same in versions that do not have it.
    instead: Option<&'static str>,
}

const fn always(name: &'static str, kind: Kind) -> Known {
    Known { name, from: 0, to: Minor::MAX, kind, instead: None }
}

const fn since(name: &'static str, from: Minor, kind: Kind) -> Known {
    Known { name, from, to: Minor::MAX, kind, instead: None }
}

/// Sorted by name.
const KNOWN: [Known; 14] = [
    always("arena_extend_strategy", Kind::OneOf(&["kNextPowerOfTwo", "kSameAsRequested"])),
    always("dump_graphs", Kind::Flag),
    always("dump_om_model", Kind::Flag),
    since("dynamic_batch_size", 25, Kind::Words),
    since("dynamic_dims", 25, Kind::Words),
    since("dynamic_image_size", 25, Kind::Words),
    always("enable_cann_graph", Kind::Flag),
    since("enable_cann_subgraph", 24, Kind::Flag),
    since("input_format", 25, Kind::Words),
    always("npu_mem_limit", Kind::Bytes),
    always("op_select_impl_mode", Kind::Words),
    always("optypelist_for_implmode", Kind::Words),
    Known {
        name: "precision_mode",
        from: 0,
        to: 24,
        kind: Kind::Words,
        instead: Some("precision_mode_v2 (fp16, origin, mixed_float16, …)"),
    },
    Known {
        name: "precision_mode_v2",
        from: 25,
        to: Minor::MAX,
        kind: Kind::Words,
        instead: Some("precision_mode (force_fp16, must_keep_origin_dtype, …)"),
    },
];

/// Why an option is not handed on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    #[error("the CANN provider of ONNX Runtime {version} has no option {name}; {remedy}")]
    Unknown { version: String, name: String, remedy: String },
    #[error("{name} is `{value}`; the CANN provider takes {expected}")]
    Value { name: String, value: String, expected: String },
    #[error("device_id is given by itself, beside the options")]
    DeviceId,
}

/// Every option with its value for a library of this version, by name. `keeps`: whether what is compiled is
/// written to the working directory.
///
/// # Errors
/// Where one is unknown to it or has a value that it does not take.
pub(super) fn all<'a>(
    version: &str,
    asked: &'a Cann,
    keeps: bool,
) -> Result<Vec<(&'a str, String)>, OptionError> {
    let minor = version.split('.').nth(1).and_then(|part| part.parse().ok()).unwrap_or_default();
    let keeps = if keeps { "1" } else { "0" };
    let mut all =
        vec![("device_id", asked.device_id.to_string()), ("dump_om_model", keeps.to_owned())];
    for (name, value) in &asked.options {
        if name == "device_id" {
            return Err(OptionError::DeviceId);
        }
        let known = KNOWN.iter().find(|known| known.name == name);
        let here = known.filter(|known| (known.from..=known.to).contains(&minor));
        let Some(known) = here else {
            let remedy = match known {
                Some(Known { instead: Some(instead), .. }) => format!("it has {instead} instead"),
                Some(Known { from, .. }) => format!("1.{from} and newer have it"),
                None => format!("it has {}", names(minor)),
            };
            let (version, name) = (version.to_owned(), name.clone());
            return Err(OptionError::Unknown { version, name, remedy });
        };
        if let Some(expected) = wrong(known.kind, value) {
            let (name, value) = (name.clone(), value.escape_default().to_string());
            return Err(OptionError::Value { name, value, expected });
        }
        if known.name != "dump_om_model" {
            all.push((name, value.clone()));
        } else if !is_on(value)
            && let Some((_, keeps)) = all.iter_mut().find(|(name, _)| *name == "dump_om_model")
        {
            "0".clone_into(keeps);
        }
    }
    Ok(all)
}

/// The words that the provider reads a flag from.
const FLAGS: [&str; 6] = ["0", "1", "false", "true", "False", "True"];

fn is_on(flag: &str) -> bool {
    flag == "1" || flag.eq_ignore_ascii_case("true")
}

/// What a value should be; `None` where it is good.
fn wrong(kind: Kind, value: &str) -> Option<String> {
    let (good, expected) = match kind {
        Kind::Flag => (FLAGS.contains(&value), "0 or 1".to_owned()),
        Kind::Bytes => (value.parse::<u64>().is_ok_and(|n| n > 0), "a number of bytes".to_owned()),
        Kind::OneOf(words) => (words.contains(&value), words.join(" or ")),
        Kind::Words => {
            let plain = |c: char| c.is_ascii_graphic() || c == ' ';
            (!value.is_empty() && value.chars().all(plain), "words".to_owned())
        }
    };
    (!good).then_some(expected)
}

/// The options of a version.
fn names(minor: Minor) -> String {
    let here = KNOWN.iter().filter(|known| (known.from..=known.to).contains(&minor));
    here.map(|known| known.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cann(options: &[(&str, &str)]) -> Cann {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Cann { device_id: 3, options: options.iter().map(owned).collect() }
    }

    fn refused(version: &str, name: &str, value: &str) -> String {
        let asked = cann(&[(name, value)]);
        all(version, &asked, false).unwrap_err().to_string()
    }

    #[test]
    fn what_is_compiled_is_kept_where_there_is_a_place_for_it_and_nobody_says_otherwise() {
        let kept = |options: &[(&str, &str)], keeps| {
            let asked = cann(options);
            all("1.24.4", &asked, keeps).unwrap()[1].clone() == ("dump_om_model", "1".to_owned())
        };
        assert!(kept(&[], true) && !kept(&[], false));
        assert!(!kept(&[("dump_om_model", "0")], true));
        assert!(kept(&[("dump_om_model", "1")], true) && !kept(&[("dump_om_model", "1")], false));
    }

    #[test]
    fn the_device_and_no_kept_models_are_always_asked_for() {
        let expected = vec![("device_id", "3".to_owned()), ("dump_om_model", "0".to_owned())];
        assert_eq!(all("1.24.4", &cann(&[]), false).unwrap(), expected);
        assert_eq!(all("1.24.4", &cann(&[("dump_om_model", "false")]), false).unwrap(), expected);
        assert!(refused("1.24.4", "device_id", "1").contains("by itself"));
    }

    #[test]
    fn each_release_is_given_its_own_names_and_the_other_ones_are_told() {
        let good = |version: &str, name: &str, value: &str| {
            let asked = cann(&[(name, value)]);
            assert_eq!(
                all(version, &asked, false).unwrap().last().unwrap(),
                &(name, value.to_owned())
            );
        };
        for version in ["1.22.1", "1.22.2", "1.23.1", "1.23.2", "1.24.4"] {
            good(version, "precision_mode", "force_fp16");
            let error = refused(version, "precision_mode_v2", "fp16");
            assert!(error.contains(version) && error.contains("has precision_mode ("), "{error}");
            let error = refused(version, "input_format", "NCHW");
            assert!(error.ends_with("1.25 and newer have it"), "{error}");
        }
        assert!(refused("1.23.2", "enable_cann_subgraph", "1").contains("1.24 and newer"));
        good("1.24.4", "enable_cann_subgraph", "1");
        good("1.26.0", "precision_mode_v2", "fp16");
        good("1.26.0", "dynamic_batch_size", "1,2,4");
        let error = refused("1.26.0", "precision_mode", "force_fp16");
        assert!(error.contains("precision_mode_v2"), "{error}");
        let error = refused("1.24.4", "max_opqueue_num", "1");
        assert!(error.contains("has no option max_opqueue_num; it has arena_extend"), "{error}");
        assert!(!error.contains("precision_mode_v2"), "{error}");
    }

    #[test]
    fn values_that_the_provider_would_not_take_are_refused_with_those_that_it_does() {
        for (name, value, expected) in [
            ("enable_cann_graph", "yes", "0 or 1"),
            ("enable_cann_graph", "2", "0 or 1"),
            ("npu_mem_limit", "2GiB", "a number of bytes"),
            ("npu_mem_limit", "-1", "a number of bytes"),
            ("arena_extend_strategy", "next", "kNextPowerOfTwo or kSameAsRequested"),
            ("op_select_impl_mode", "", "words"),
            ("op_select_impl_mode", "a\0b", "words"),
        ] {
            let error = refused("1.24.4", name, value);
            assert!(error.contains(name) && error.ends_with(expected), "{error}");
        }
    }

    #[test]
    fn the_table_is_sorted() {
        assert!(KNOWN.is_sorted_by_key(|known| known.name));
    }
}
