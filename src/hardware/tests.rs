use proptest::prelude::*;

use super::parse::*;
use super::*;

#[test]
fn quotas_are_read_from_both_versions() {
    let cases = [
        ("max 100000\n", None),
        ("150000 100000\n", Some(1.5)),
        ("50000 100000", Some(0.5)),
        ("", None),
        ("100000", None),
        ("1 0", None),
    ];
    for (text, expected) in cases {
        assert_eq!(cpu_max(text), expected, "{text:?}");
    }
    assert_eq!(cpu_quota_v1("-1\n", "100000\n"), None);
    assert_eq!(cpu_quota_v1("200000\n", "100000\n"), Some(2.0));
    assert_eq!(cpu_quota_v1("200000\n", "0\n"), None);
}

#[test]
fn memory_bounds_are_read_from_both_versions() {
    assert_eq!(memory_max("max\n"), None);
    assert_eq!(memory_max("1073741824\n"), Some(1 << 30));
    assert_eq!(memory_max_v1("9223372036854771712\n"), None);
    assert_eq!(memory_max_v1("536870912\n"), Some(512 << 20));
    let stat = "anon 1000\nfile 5000\ninactive_file 3000\nactive_file 2000\n";
    assert_eq!(file_cache(stat), Some(3000));
    assert_eq!(file_cache("inactive_file 1\ntotal_inactive_file 7\n"), Some(7));
    assert_eq!(file_cache("anon 1000\n"), None);
}

#[test]
fn processor_sets_are_read_and_absurd_ones_are_not_unfolded() {
    let cases = [
        ("0-3,7\n", Some(vec![0, 1, 2, 3, 7])),
        ("5", Some(vec![5])),
        ("\n", None),
        ("3-1", None),
        ("0-4294967295", None),
        ("a-b", None),
    ];
    for (text, expected) in cases {
        assert_eq!(cpu_set(text), expected, "{text:?}");
    }
}

#[test]
fn groups_outside_the_namespace_are_the_root() {
    let found = groups("12:cpu,cpuacct:/a/b\n4:memory:/../..\n0::/system.slice/x.service\n");
    assert_eq!(found.v2.as_deref(), Some("/system.slice/x.service"));
    assert_eq!(found.v1["cpuacct"], "/a/b");
    assert_eq!(found.v1["memory"], "/");
}

#[test]
fn arm_kernels_give_codes_for_names() {
    let text = "processor\t: 0\nCPU implementer\t: 0x48\nCPU part\t: 0xd01\n\nprocessor\t: 1\n";
    let info = cpuinfo(text);
    assert_eq!(info.model.as_deref(), Some("HiSilicon TaiShan v110"));
    assert_eq!(info.logical_cores, 2);
    let unknown = cpuinfo("CPU implementer : 0x99\nCPU part : 0x1\n");
    assert_eq!(unknown.model.as_deref(), Some("ARM implementer 0x99 part 0x001"));
}

#[test]
fn hyperthreads_are_not_counted_as_cores() {
    let core = |number, package, core| {
        format!("processor : {number}\nphysical id : {package}\ncore id : {core}\n\n")
    };
    let text = core(0, 0, 0) + &core(1, 0, 0) + &core(2, 1, 0) + &core(3, 1, 0);
    let info = cpuinfo(&text);
    assert_eq!((info.logical_cores, info.physical_cores), (4, Some(2)));
}

#[test]
fn memory_of_old_kernels_is_guessed() {
    let text = "MemTotal: 1000 kB\nMemFree: 100 kB\nCached: 300 kB\n";
    assert_eq!(meminfo(text), Some(Memory { total: 1000 << 10, available: 400 << 10 }));
    assert_eq!(meminfo("MemTotal: 1000 kB\n"), None);
}

#[test]
fn sensors_that_are_off_have_no_temperature() {
    assert_eq!(millidegrees("45250\n"), Some(45.25));
    for text in ["-274000", "2147483647", "", "N/A"] {
        assert_eq!(millidegrees(text), None, "{text:?}");
    }
}

#[test]
fn pressure_of_old_kernels_has_no_full_line() {
    let text = "some avg10=12.50 avg60=2.10 avg300=9.40 total=683705285\n";
    let some = Pressure { some_10s: 0.125, some_60s: 0.021, full_10s: None };
    assert_eq!(pressure(text), Some(some));
    let full = pressure(&format!("{text}full avg10=1.00 avg60=0.00 avg300=0.00 total=0\n"));
    assert_eq!(full.and_then(|pressure| pressure.full_10s), Some(0.01));
    assert_eq!(pressure("some avg10=nan avg60=0 avg300=0 total=0"), None);
}

#[test]
fn slices_bound_what_a_host_offers() {
    let mut host = Host {
        cpu: Cpu { logical_cores: 8, ..Cpu::default() },
        memory: Memory { total: 100, available: 60 },
        ..Host::default()
    };
    assert_eq!((host.usable_cores(), host.memory_available()), (8, 60));
    host.limits.cpus = Some(2.5);
    host.limits.memory = Some(50);
    host.limits.memory_used = Some(20);
    assert_eq!((host.usable_cores(), host.memory_available()), (3, 30));
    host.limits.cpu_set = Some(vec![4]);
    assert_eq!(host.usable_cores(), 1);
    host.limits.memory_used = Some(70);
    assert_eq!(host.memory_available(), 0);
}

proptest! {
    #[test]
    fn no_text_makes_a_parser_panic(text in "(?s)[ -~\n\t]{0,120}") {
        let _ = (cpu_max(&text), memory_max(&text), file_cache(&text), cpu_set(&text));
        let _ = cpu_stat(&text);
        let _ = (groups(&text), cpuinfo(&text), meminfo(&text), load_average(&text));
        let _ = (pressure(&text), millidegrees(&text), frequency_mhz(&text));
        let _ = cpu_quota_v1(&text, &text);
    }
}
