use std::collections::BTreeMap;

use super::*;
use crate::config::{Flag, Layers, Loaded, Text};

const TLS: &str = "tls: {certificate: c.pem, key: credential:key, client_ca: ca.pem}\n";

fn load(texts: &[&str], flags: &[(&str, &str)]) -> Result<Loaded, String> {
    let names = ["/e/agent.yaml", "/e/conf.d/10.yaml"];
    let files: Vec<Text> =
        names.iter().zip(texts).map(|(file, text)| Text { file, text }).collect();
    let flag = |(path, text): &(&str, &str)| Flag {
        flag: "--set".to_owned(),
        path: (*path).to_owned(),
        text: (*text).to_owned(),
    };
    let flags: Vec<Flag> = flags.iter().map(flag).collect();
    let environment = BTreeMap::from([
        // Read by other commands, and no settings.
        ("BLOCHD_CA".to_owned(), "/x".to_owned()),
        ("BLOCHD_TOKEN_FILE".to_owned(), "/x".to_owned()),
        ("BLOCHD_ACCESS__BY_VARIABLE__SCOPES".to_owned(), "metrics".to_owned()),
        ("BLOCHD_ACCESS__BY_VARIABLE__TOKEN_FILE".to_owned(), "/t".to_owned()),
    ]);
    let (base, environment, flags) = (Config::default(), &environment, &flags);
    Layers { base, files: &files, fleet: None, environment, flags }
        .load()
        .map_err(|errors| errors.to_string())
}

#[test]
fn who_may_come_in_is_read_whole_and_a_later_part_changes_only_what_it_names() {
    let first = format!(
        "{TLS}access:\n  camera: {{token_file: t, scopes: infer}}\n  ops:\n    \
         certificate: dns:Ops.Plant\n    scopes: [infer, admin]\n"
    );
    let later = "access: {camera: {scopes: [metrics, infer]}}\n";
    let loaded = load(
        &[&first, later],
        &[("access.spiffe.scopes", "admin"), ("access.spiffe.certificate", "uri:spiffe://a/b")],
    )
    .unwrap();
    assert_eq!(loaded.warnings, []);
    let config = loaded.config;
    assert_eq!(config.tls.certificate, Some(SecretFile("/e/c.pem".into())));
    assert_eq!(config.tls.key, Some(SecretFile("credential:key".into())));
    let names: Vec<&str> = config.access.keys().map(String::as_str).collect();
    assert_eq!(names, ["by_variable", "camera", "ops", "spiffe"]);
    let camera = &config.access["camera"];
    assert_eq!(camera.token_file, Some(SecretFile("/e/t".into())));
    assert_eq!(camera.scopes.show(), "infer, metrics");
    let ops = &config.access["ops"];
    assert_eq!(ops.certificate, Some(CertificateName::Dns("ops.plant".to_owned())));
    let spiffe = CertificateName::Uri("spiffe://a/b".to_owned());
    assert_eq!(config.access["spiffe"].certificate, Some(spiffe));
    assert_eq!(loaded.origins["access.camera.scopes"].to_string(), "/e/conf.d/10.yaml:1:27");
    let shown: Vec<_> = grant_settings(camera).collect();
    assert_eq!(shown[0], ("token_file", "/e/t".to_owned()));
    let diff = Config::diff(&Config::default(), &config);
    assert!(diff.changes.iter().any(|change| change.path == "access.ops.scopes"));
    assert!(diff.restart().next().is_none());
}

#[test]
fn what_does_not_fit_is_said_at_its_place() {
    for (text, said) in [
        ("access: {a: {scopes: [infer]}}", "1:10: nothing says how `a` is known; write token_file"),
        ("access: {a: {token_file: t}}", "1:10: `a` may do nothing; write scopes: [infer]"),
        (
            "access: {a: {certificate: cn:x, scopes: infer}}",
            "1:10: nobody vouches for the certificate of `a`; name under tls.client_ca",
        ),
        (
            "access: {a: {token_file: t, scopes: [infr]}}",
            "1:38: \"infr\" is no scope; did you mean `infer`?",
        ),
        (
            "access: {a: {certificate: ops}}",
            "1:27: \"ops\" names no certificate; write dns: or uri:",
        ),
        ("access: {a: {certificate: 'ip:1'}}", "1:27: \"ip:1\" names no certificate; write dns:"),
        ("access: {'a b': {}}", "1:10: \"a b\" names nobody; write 1 to"),
        (
            "access: {a: {tokenfile: t}}",
            "1:14: unknown key `tokenfile`; did you mean `token_file`?",
        ),
        ("tls: {certificate: c}", "1:20: a certificate and its key go together; name both"),
        ("tls: {client_ca: c}", "1:18: clients show a certificate only over TLS"),
        ("admin_address: off", "1:16: \"off\" is not a socket address; write an IP address"),
        ("admin_address: 127.0.0.1:8001", "1:16: admin_address and grpc_address are both"),
        ("metrics_address: 127.0.0.1:8000", "1:18: "),
    ] {
        let words = load(&[text], &[]).unwrap_err();
        let expected = format!("/e/agent.yaml:{said}");
        assert!(words.starts_with(&expected), "{text}: {words}");
        assert_eq!(words.lines().count(), 1, "{words}");
    }
    let many: String =
        (0..64).map(|n| format!("  c{n}: {{token_file: t{n}, scopes: infer}}\n")).collect();
    let words = load(&[&format!("access:\n{many}")], &[]).unwrap_err();
    assert!(words.contains("65 under access are too many; name at most 64"), "{words}");
}

#[test]
fn the_admin_port_is_elsewhere_nowhere_or_with_inference() {
    let of = |text: &str| load(&[text], &[]).unwrap().config.admin_address;
    let usual = "127.0.0.1:8003".parse().unwrap();
    assert_eq!(of(""), AdminDoor::At(usual));
    assert_eq!(of("admin_address: none"), AdminDoor::Off);
    assert_eq!(of("admin_address: same"), AdminDoor::Same);
    let other = AdminDoor::At("127.0.0.1:9".parse().unwrap());
    assert_eq!(of("admin_address: localhost:9"), other);
    for door in [AdminDoor::At(usual), AdminDoor::Off, AdminDoor::Same, other] {
        assert_eq!(admin_address(&door.show()).unwrap(), door);
    }
}

#[test]
fn a_port_that_other_machines_reach_is_refused_unless_it_asks_over_tls_or_that_is_meant() {
    let grant = "access: {a: {token_file: t, scopes: infer}}\n";
    // Somebody is listed by the variables of all these tests.
    let refused = |text: &str| load(&[text], &[]).err();
    let open = "http_address: 0.0.0.0:80\ngrpc_address: 10.0.0.7:81\nmetrics_address: '[::]:9'\n\
                admin_address: '[fd00::1]:7'\n";
    let words = refused(&format!("{open}{grant}")).unwrap();
    for (line, start) in words.lines().zip([
        "/e/agent.yaml:1:15: http_address 0.0.0.0:80 is reached from other machines, without TLS",
        "/e/agent.yaml:2:15: grpc_address 10.0.0.7:81 is reached from other machines",
        "/e/agent.yaml:3:18: metrics_address [::]:9 is reached from other machines",
        "/e/agent.yaml:4:16: admin_address [fd00::1]:7 is reached from other machines",
    ]) {
        assert!(line.starts_with(start), "{line}");
        for way in ["tls", "127.0.0.1 or the Unix socket", "allow_plaintext: true"] {
            assert!(line.contains(way), "{line}");
        }
    }
    assert_eq!(words.lines().count(), 4, "{words}");
    assert_eq!(refused(&format!("{open}{grant}{TLS}")), None);
    assert_eq!(refused(&format!("{open}allow_plaintext: true\n")), None);
    let here = "http_address: '[::1]:80'\ngrpc_address: 127.9.9.9:81\n";
    assert_eq!(refused(here), None);
    assert_eq!(refused("http_address: '[::ffff:127.0.0.1]:80'\n"), None);

    // To whom a port is open, with everything that matters.
    let at = |text: &str| text.parse::<SocketAddr>().unwrap();
    let mut config = Config::default();
    let closed = |config: &Config| config.closed(at("10.0.0.7:1"));
    let says = |config: &Config, address: &str| config.opening(at(address)).to_string();
    assert!(closed(&config).unwrap().ends_with("without TLS, and asks nobody who they are"));
    assert_eq!(config.closed(at("127.0.0.1:1")), None);
    assert_eq!(says(&config, "127.0.0.1:1"), "whoever is on this box, without TLS");
    config.tls.certificate = Some(SecretFile("/c".into()));
    assert!(closed(&config).unwrap().ends_with("machines, and asks nobody who they are"));
    assert_eq!(says(&config, "0.0.0.0:1"), "whoever reaches this box, over TLS");
    config.tls.client_ca = Some(SecretFile("/ca".into()));
    assert_eq!(closed(&config), None);
    let vouched =
        "whoever reaches this box and shows a certificate that tls.client_ca vouches for, over TLS";
    assert_eq!(says(&config, "0.0.0.0:1"), vouched);
    assert_eq!(says(&config, "127.0.0.1:1"), "whoever is on this box, without TLS");
    config.access.insert("a".to_owned(), Grant::default());
    assert_eq!(closed(&config), None);
    assert_eq!(
        says(&config, "0.0.0.0:1"),
        "whoever reaches this box and is listed under access, over TLS"
    );
    let here = "whoever is on this box and is listed under access, without TLS";
    assert_eq!(says(&config, "127.0.0.1:1"), here);
    config.tls = Tls::default();
    assert!(closed(&config).unwrap().ends_with("in which tokens are read by all"));
}
