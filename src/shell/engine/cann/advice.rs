//! What to do about an error of CANN's: its own words name a call and a number.

/// The number of an error, its name, and what to do: aclError of `acl_base.h` and `rt_error_codes.h`, the
/// headers that Huawei publishes with CANN (as in mindspore's graphengine).
const CODES: [(i64, &str); 29] = [
    (
        100_000,
        "CANN was given an invalid parameter: the provider and this CANN may not fit each other",
    ),
    (100_001, "CANN is not initialised: another part of this process finalised it"),
    (
        100_003,
        "CANN does not find a file of its own: run the toolkit's set_env.sh, or install it anew",
    ),
    (100_024, OPERATORS),
    (100_026, "the chip has no kernel for this data type: convert the model to float16 or float32"),
    (
        100_039,
        "this is a stub of CANN for linking, not CANN: let LD_LIBRARY_PATH name lib64, not \
         lib64/stub",
    ),
    (
        107_000,
        "CANN's runtime was given an invalid parameter: the provider and this CANN may not fit \
         each other",
    ),
    (107_001, DEVICE),
    (
        107_002,
        "no device is set on this thread: the device was reset by another part of this process",
    ),
    (
        107_003,
        "the stream is of another device: the device was reset by another part of this process",
    ),
    (148_049, OPP),
    (200_000, MEMORY),
    (200_001, TOO_OLD),
    (200_002, DEVICE),
    (200_006, TOO_OLD),
    (207_000, TOO_OLD),
    (207_001, MEMORY),
    (207_004, NO_DEVICE),
    (207_006, PERMISSION),
    (500_000, LOG),
    (500_001, LOG),
    (500_002, LOG),
    (500_003, LOG),
    (500_004, DRIVER),
    (
        507_008,
        "the model was compiled for another SoC, or CANN does not know this one: install the \
         kernels of this chip (Ascend-cann-kernels-…) in the toolkit's version",
    ),
    (
        507_010,
        "the chip does not answer any more: `npu-smi info` tells its health; it may need a reset",
    ),
    (
        507_011,
        "the model failed on the chip; where it does so on every run, leave operators to the CPU \
         with enable_cann_subgraph=1",
    ),
    (
        507_033,
        "the device cannot be set up: driver, firmware and CANN may not fit each other (`npu-smi \
        info`, /usr/local/Ascend/driver/version.info), or another container holds it",
    ),
    (507_899, DRIVER),
];

const OPERATORS: &str = "CANN cannot compile or run an operator of the model; \
                         enable_cann_subgraph=1 leaves what it does not know to the CPU, and the \
                         execution provider `cpu` needs none of it. Details are in CANN's own log \
                         (ASCEND_SLOG_PRINT_TO_STDOUT=1)";
const DEVICE: &str = "there is no device of this number: device_id counts from 0 among those that \
    ASCEND_RT_VISIBLE_DEVICES leaves; `npu-smi info` shows all";
const NO_DEVICE: &str = "CANN sees no device: is the driver loaded (/dev/davinci0, `npu-smi \
                         info`), may this user open it (group HwHiAiUser; SupplementaryGroups= \
                         and DeviceAllow= of the service), and does ASCEND_RT_VISIBLE_DEVICES \
                         leave one?";
const PERMISSION: &str = "this user may not open the device: /dev/davinci*, /dev/davinci_manager, \
                          /dev/devmm_svm and /dev/hisi_hdc belong to HwHiAiUser; put the user \
                          into that group (`usermod -aG HwHiAiUser USER`, \
                          SupplementaryGroups=HwHiAiUser and DeviceAllow= of the service)";
const MEMORY: &str = "the device's memory does not suffice: serve fewer models or smaller rungs, \
                      set npu_mem_limit lower, or end what else uses the device (`npu-smi info`)";
const TOO_OLD: &str = "this CANN or driver does not have what is asked of it: bring driver, \
                       firmware and CANN to versions that are released together";
const DRIVER: &str = "the driver failed: may this user open /dev/davinci* (group HwHiAiUser), \
                      does another container hold the device, and do driver and CANN fit each \
                      other (`npu-smi info`)? dmesg may say more";
const OPP: &str = "CANN does not find its operators: source the toolkit's set_env.sh, or set \
    ASCEND_OPP_PATH for the service to …/Ascend/cann/opp or …/ascend-toolkit/latest/opp";
const LOG: &str = "CANN failed within; its own log says more (~/ascend/log, or \
    ASCEND_SLOG_PRINT_TO_STDOUT=1)";
const TOOLKIT: &str = "install the CANN toolkit, and let the linker find it: `source \
    /usr/local/Ascend/ascend-toolkit/set_env.sh` (or …/Ascend/cann/set_env.sh) in a shell, \
    Environment=LD_LIBRARY_PATH=/usr/local/Ascend/cann/lib64 in a drop-in of the service";

/// What to do about an error whose words are these; `None` where CANN has no part in it, or nobody knows.
pub fn advice(words: &str) -> Option<String> {
    if let Some(module) = between(words, "No module named '", "'") {
        // Python runs inside of CANN's compiler alone.
        return Some(format!(
            "CANN's compiler is written in Python and lacks its package {module}: install it for \
             the python3 that CANN finds first (`python3 -m pip install {module}`; CANN's guide \
             lists attrs, cython, decorator, numpy, psutil, scipy, sympy and others)"
        ));
    }
    if let Some(advice) = loading(words).or_else(|| counting(words)) {
        return Some(advice);
    }
    if !words.contains("CANN") {
        return None;
    }
    if words.contains("is not enabled in this build") {
        return Some("`blochd runtime fetch --ep cann` installs a build with CANN".to_owned());
    }
    let calls = ["aclgrphParseONNXFromMem", "aclgrphBuildModel", "aclopCompileAndExecute"];
    let compiles = calls.iter().any(|call| words.contains(call));
    let code = between(words, " failure ", ":").and_then(|code| code.trim().parse::<i64>().ok());
    // Anything may have failed, and this is what did.
    let code = code.filter(|code| !(compiles && (500_000..=500_003).contains(code)));
    if let Some((code, what)) = code.and_then(|code| CODES.iter().find(|(known, _)| *known == code))
    {
        return Some(format!("code {code}: {what}"));
    }
    if words.contains("aclgrphBuildInitialize") {
        return Some(format!(
            "CANN's compiler does not start: an option such as precision_mode may have a value \
             that this CANN does not know, or {OPP}"
        ));
    }
    compiles.then(|| OPERATORS.to_owned())
}

/// The dynamic linker's words about the provider's library.
fn loading(words: &str) -> Option<String> {
    let missing = between_back(words, ": cannot open shared object file");
    if let Some(library) = missing.filter(|name| name.starts_with("lib") && name.contains(".so")) {
        // Of the driver; everything else that the provider is linked to is the toolkit's.
        let driver = ["libascend_hal.so", "libdrvdsmi_host.so", "libc_sec.so"];
        if driver.contains(&library) {
            return Some(format!(
                "{library} belongs to the Ascend driver, not to CANN: install the driver, and let \
                LD_LIBRARY_PATH name /usr/local/Ascend/driver/lib64/driver as well"
            ));
        }
        let ours = words.contains("providers_cann") || library.contains("ascend");
        return ours.then(|| format!("{library} is a library of CANN: {TOOLKIT}"));
    }
    let symbol = between(words, "undefined symbol: ", " ").or(after(words, "undefined symbol: "));
    let symbol = symbol.filter(|_| words.contains("providers_cann") || words.contains("/Ascend/"));
    symbol.map(|symbol| {
        format!(
            "the CANN that is installed does not have {symbol}: its version and that of the \
             provider do not fit each other, or two versions are mixed in LD_LIBRARY_PATH"
        )
    })
}

/// The provider's words about the number of the device.
fn counting(words: &str) -> Option<String> {
    if words.contains("aclrtGetDeviceCount() failed") {
        return Some(NO_DEVICE.to_owned());
    }
    words.contains("Invalid device ID").then_some(())?;
    let count = between(words, "(inclusive) and ", " ")?.parse::<u32>().ok()?;
    Some(if count == 0 { NO_DEVICE.to_owned() } else { DEVICE.to_owned() })
}

fn after<'a>(words: &'a str, before: &str) -> Option<&'a str> {
    Some(&words[words.find(before)? + before.len()..])
}

fn between<'a>(words: &'a str, before: &str, behind: &str) -> Option<&'a str> {
    let rest = after(words, before)?;
    rest.find(behind).map(|end| &rest[..end])
}

/// The last word before `behind`.
fn between_back<'a>(words: &'a str, behind: &str) -> Option<&'a str> {
    let rest = &words[..words.find(behind)?];
    rest.rsplit([' ', '/', '\n']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Words that were seen: on this provider with and without stand-ins for CANN, and in issues of ONNX
    /// Runtime and Ascend.
    const SEEN: &[(&str, &str)] = &[
        (
            "Failed to load library \
             /s/runtime/onnxruntime-cann-1.24.4/libonnxruntime_providers_cann.so with error: \
             libascendcl.so: cannot open shared object file: No such file or directory",
            "libascendcl.so is a library of CANN: install the CANN toolkit",
        ),
        (
            "Failed to load library /s/libonnxruntime_providers_cann.so with error: \
             libascend_hal.so: cannot open shared object file: No such file or directory",
            "libascend_hal.so belongs to the Ascend driver",
        ),
        (
            "Failed to load library /s/libonnxruntime_providers_cann.so with error: \
             /s/libonnxruntime_providers_cann.so: undefined symbol: aclmdlGetDatasetTensorDesc",
            "does not have aclmdlGetDatasetTensorDesc",
        ),
        (
            "Failed to parse provider option \"device_id\": cann_execution_provider_info.cc:51 \
             operator() Invalid device ID: 5, must be between 0 (inclusive) and 2 (exclusive).",
            "ASCEND_RT_VISIBLE_DEVICES",
        ),
        (
            "Failed to parse provider option \"device_id\": cann_execution_provider_info.cc:51 \
             operator() Invalid device ID: 0, must be between 0 (inclusive) and 0 (exclusive).",
            "CANN sees no device",
        ),
        (
            "cann_execution_provider_info.cc:48 operator() aclrtGetDeviceCount() failed.",
            "group HwHiAiUser",
        ),
        ("CANN execution provider is not enabled in this build.", "runtime fetch --ep cann"),
        (
            "Traceback (most recent call last):\n  File \
             \"/usr/local/Ascend/…/tbe/tvm/target.py\", line 67\n    from decorator import \
             decorate\nModuleNotFoundError: No module named 'decorator'",
            "python3 -m pip install decorator",
        ),
        (
            "Name:'CANNExecutionProvider_main_graph_12023255667024707207_0_0' Status Message: \
             CANN Graph error executing ge::aclgrphParseONNXFromMem(string_model.data(), \
             string_model.size(), parser_params, graph)",
            "enable_cann_subgraph=1",
        ),
        (
            "Status Message: CANN Graph error executing ge::aclgrphBuildModel(graph, options, \
             model); CANNGRAPH failure -1: GRAPH_FAILED ; NPU=0 ; hostname=vm ; \
             expr=ge::aclgrphBuildModel(graph, options, model);",
            "enable_cann_subgraph=1",
        ),
        (
            "CANN failure 500001: ACL_ERROR_FAILURE ; NPU=0 ; hostname=vm ; \
             expr=aclopCompileAndExecute(\"Conv2D\", prepare.inputDesc_.size());",
            "enable_cann_subgraph=1",
        ),
        (
            "CANN failure -1: (look for ACL_ERROR_xxx in acl.h) ; NPU=0 ; hostname=vm ; \
             expr=ge::aclgrphBuildInitialize(options);",
            "precision_mode may have a value",
        ),
    ];

    #[test]
    fn words_that_were_seen_are_answered_with_what_helps() {
        for (words, expected) in SEEN {
            let advice = advice(words).unwrap_or_else(|| panic!("nothing for {words}"));
            assert!(advice.contains(expected), "{words}\n{advice}");
        }
    }

    #[test]
    fn codes_are_told_by_what_they_mean() {
        for (code, expected) in [
            (107_001, "device_id counts from 0"),
            (107_002, "no device is set"),
            (207_001, "npu_mem_limit"),
            (207_006, "HwHiAiUser"),
            (500_001, "its own log says more"),
            (507_008, "another SoC"),
            (507_033, "cannot be set up"),
            (507_899, "the driver failed"),
        ] {
            let words = format!(
                "CANN failure {code}: (look for ACL_ERROR_xxx in acl.h) ; NPU=0 ; hostname=vm ; \
                 expr=aclrtSetDevice(info_.device_id); "
            );
            let advice = advice(&words).unwrap();
            assert!(advice.contains(&code.to_string()) && advice.contains(expected), "{advice}");
        }
        assert_eq!(advice("CANN failure 999999: ; expr=aclrtMalloc(&p, size)"), None);
        assert!(CODES.is_sorted_by_key(|(code, _)| *code));
    }

    #[test]
    fn what_is_not_cann_s_gets_no_advice() {
        for words in [
            "",
            "input \"x\" is missing",
            "Non-zero status code returned while running Conv node. Name:'conv'",
            "libfoo.so: cannot open shared object file: No such file or directory",
            "/x/libother.so: undefined symbol: foo",
            ": cannot open shared object file",
            "something failure 107001: x",
        ] {
            assert_eq!(advice(words), None, "{words}");
        }
    }
}
