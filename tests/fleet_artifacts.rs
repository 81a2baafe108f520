//! Artifacts from web servers with TLS and from registries: what is fetched, from whom, and who is told what.
//! One of the registries is of Debian, the others say what the test has them say.

mod broker;
mod depot;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use blochd::config::{Depots, Hosts, SecretFile, SignIn, UserName};
use blochd::fleet::apply::Failure;
use blochd::fleet::{Artifact, Sha256, Source};
use blochd::shell::fleet::depot::Depot;
use blochd::shell::fleet::fetch::{Fetcher, model_file};
use blochd::units::Version;
use broker::{Authority, PATIENCE};
use depot::{Answer, Asked, Server};
use sha2::Digest as _;
use tempfile::TempDir;

/// `Basic` and, in base64, `box-1:open-sesame`.
const BASIC: &str = "Basic Ym94LTE6b3Blbi1zZXNhbWU=";

/// Somebody who vouches for servers, and a box that fetches from them.
struct Bench {
    dir: TempDir,
    depots: Depots,
    bytes: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new();
        authority.write(&dir.path().join("ca.pem"));
        authority.certify(dir.path(), "server");
        authority.certify(dir.path(), "box-1");
        fs::create_dir(dir.path().join("to")).unwrap();
        fs::write(dir.path().join("password"), "open-sesame\n").unwrap();
        let ca = Some(dir.path().join("ca.pem"));
        let sign_in = SignIn { ca, ..SignIn::default() };
        let depots = Depots { sign_in, ..Depots::default() };
        Self { dir, depots, bytes: (0..200_000u32).map(|n| (n / 7) as u8).collect() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Gives the box a name and a password, for these servers.
    fn signs_in(&mut self, hosts: &[String]) {
        self.depots.hosts = Hosts(hosts.to_vec());
        self.depots.sign_in.username = Some(UserName("box-1".to_owned()));
        self.depots.sign_in.password_file = Some(SecretFile(self.path("password")));
    }

    fn server(&self, answer: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Server {
        let (certificate, key) = (self.path("server.pem"), self.path("server.key"));
        Server::start(Some((&certificate, &key)), answer)
    }

    fn artifact(&self, url: &str) -> Artifact {
        let from = match url.starts_with("oci") {
            true => Source::Registry(url.parse().unwrap()),
            false => Source::Web(url.parse().unwrap()),
        };
        Artifact {
            name: "m".into(),
            version: Version(1),
            from,
            size: self.bytes.len() as u64,
            sha256: Sha256(sha2::Sha256::digest(&self.bytes).into()),
            signature: None,
            files: Vec::new(),
        }
    }

    fn to(&self) -> PathBuf {
        self.path("to")
    }

    fn fetch(&self, url: &str) -> Result<(), Failure> {
        let depot = Depot::new(self.depots.clone());
        let fetcher = Fetcher::new(self.to(), None, depot, None, Arc::default());
        fetcher.fetch(&self.artifact(url), None)
    }

    /// Fetches what must come whole.
    fn fetch_whole(&self, url: &str) {
        self.fetch(url).unwrap();
        let file = model_file(&self.to(), &self.artifact(url));
        assert_eq!(fs::read(&file).unwrap(), self.bytes);
        fs::remove_file(file).unwrap();
    }

    fn final_word(&self, url: &str) -> String {
        let Err(Failure::ForGood(why)) = self.fetch(url) else { panic!("it went well, or may") };
        assert!(!why.contains("open-sesame"), "{why}");
        why
    }
}

#[test]
fn an_artifact_comes_over_https_from_whom_the_authority_vouches_for_and_goes_on_where_it_stopped() {
    let mut bench = Bench::new();
    let (bytes, turn) = (bench.bytes.clone(), AtomicUsize::new(0));
    let server = bench.server(move |asked| {
        let cut = (turn.fetch_add(1, Ordering::Relaxed) == 0).then_some(150_000);
        Answer { cut, ..Answer::file(asked, &bytes) }
    });
    let url = server.url("/m.onnx?signed=open-sesame");
    let right = bench.depots.sign_in.ca.replace(bench.path("other.pem"));
    Authority::new().write(&bench.path("other.pem"));
    let Err(Failure::Later(why)) = bench.fetch(&url) else { panic!() };
    assert!(why.contains("not trusted") && why.contains("fleet.artifacts.ca"), "{why}");
    assert!(!why.contains("open-sesame"), "{why}");
    assert_eq!(server.asked(), []);
    bench.depots.sign_in.ca = right;
    let Err(Failure::Later(why)) = bench.fetch(&url) else { panic!() };
    assert!(why.contains("after 150000 bytes"), "{why}");
    bench.fetch_whole(&url);
    let asked = server.asked();
    let ranges: Vec<_> = asked.iter().map(|one| one.header("range")).collect();
    assert_eq!(ranges, [None, Some("bytes=150000-")]);
    assert!(asked.iter().all(|one| one.header("authorization").is_none()));
}

#[test]
fn nothing_is_followed_from_https_to_http_and_nothing_but_what_was_signed_is_taken() {
    let bench = Bench::new();
    let bytes = bench.bytes.clone();
    let plain = Server::start(None, move |asked| Answer::file(asked, &bytes));
    // Without TLS at all is fine: what it must be is signed.
    bench.fetch_whole(&plain.url("/m"));
    let (to, before) = (plain.url("/m"), plain.asked().len());
    let sends_on = bench.server(move |_| Answer::redirect(to.clone()));
    let why = bench.final_word(&sends_on.url("/m"));
    assert!(why.contains("without TLS"), "{why}");
    assert_eq!(plain.asked().len(), before);
    let around = bench.server(|asked| Answer::redirect(asked.path.clone()));
    assert!(bench.final_word(&around.url("/m")).contains("on and on"));
    let other = vec![7; bench.bytes.len()];
    let wrong = bench.server(move |asked| Answer::file(asked, &other));
    assert!(bench.final_word(&wrong.url("/m")).contains("not what the bundle says"));
    let mut longer = bench.bytes.clone();
    longer.push(0);
    let longer = bench.server(move |asked| Answer::file(asked, &longer));
    assert!(bench.final_word(&longer.url("/m")).contains("larger than the bundle says"));
    // What came of it is what was signed, and would do.
    fs::remove_dir_all(bench.to()).unwrap();
    fs::create_dir(bench.to()).unwrap();
    for (status, is_final) in [(404, true), (403, true), (503, false), (429, false)] {
        let server = bench.server(move |_| Answer::status(status));
        let told = bench.fetch(&server.url("/m"));
        assert_eq!(matches!(told, Err(Failure::ForGood(_))), is_final, "{told:?}");
    }
    let whole = |one: &fs::DirEntry| one.path().extension().is_some_and(|end| end == "onnx");
    assert_eq!(fs::read_dir(bench.to()).unwrap().flatten().filter(whole).count(), 0);
}

#[test]
fn a_password_goes_to_the_named_servers_and_not_to_where_they_send_on() {
    let mut bench = Bench::new();
    let bytes = bench.bytes.clone();
    let store = bench.server(move |asked| Answer::file(asked, &bytes));
    let to = store.url("/kept");
    let front = bench.server(move |_| Answer::redirect(to.clone()));
    let bytes = bench.bytes.clone();
    let other = bench.server(move |asked| Answer::file(asked, &bytes));
    bench.signs_in(&[front.host()]);
    bench.fetch_whole(&front.url("/m"));
    bench.fetch_whole(&other.url("/m"));
    assert_eq!(front.asked()[0].header("authorization"), Some(BASIC));
    assert_eq!(store.asked()[0].header("authorization"), None);
    assert_eq!(other.asked()[0].header("authorization"), None);
}

#[test]
fn a_certificate_of_the_boxs_own_is_shown_to_the_named_servers() {
    let mut bench = Bench::new();
    let bytes = bench.bytes.clone();
    let own = (bench.path("server.pem"), bench.path("server.key"));
    let server = Server::for_members((&own.0, &own.1), &bench.path("ca.pem"), move |asked| {
        Answer::file(asked, &bytes)
    });
    let url = server.url("/m");
    bench.depots.sign_in.client_certificate = Some(SecretFile(bench.path("box-1.pem")));
    bench.depots.sign_in.client_key = Some(SecretFile(bench.path("box-1.key")));
    assert!(matches!(bench.fetch(&url), Err(Failure::Later(_))));
    assert_eq!(server.asked(), []);
    bench.depots.hosts = Hosts(vec![server.host()]);
    bench.fetch_whole(&url);
    assert_eq!(server.asked().len(), 1);
}

/// A registry that wants a token of `realm`, and keeps its blobs elsewhere.
fn registry(bench: &Bench, realm: String, store: String) -> Server {
    let blob = format!("/v2/models/m/blobs/sha256:{}", bench.artifact("oci://r/m").sha256);
    bench.server(move |asked| match asked.header("authorization") {
        Some("Bearer the-token") if asked.path == blob => Answer::redirect(store.clone()),
        Some("Bearer the-token") => Answer::status(404),
        _ => {
            let scope = "repository:models/m:pull";
            let words = format!("Bearer realm=\"{realm}\",service=\"reg\",scope=\"{scope}\"");
            Answer::status(401).with("www-authenticate", words)
        }
    })
}

#[test]
fn a_registry_is_asked_with_a_token_and_its_store_without_one() {
    let mut bench = Bench::new();
    let (bytes, turn) = (bench.bytes.clone(), AtomicUsize::new(0));
    let store = bench.server(move |asked| {
        let cut = (turn.fetch_add(1, Ordering::Relaxed) == 0).then_some(150_000);
        Answer { cut, ..Answer::file(asked, &bytes) }
    });
    let tokens = bench.server(|_| Answer::bytes("{\"access_token\": \"the-token\"}"));
    let registry = registry(&bench, tokens.url("/token"), store.url("/kept?for=you"));
    let url = format!("oci://{}/models/m:3", registry.host());
    // Anonymously, and on from where it stopped.
    assert!(matches!(bench.fetch(&url), Err(Failure::Later(_))));
    bench.fetch_whole(&url);
    let asked = store.asked();
    assert_eq!(asked.last().unwrap().header("range"), Some("bytes=150000-"));
    assert!(asked.iter().all(|one| one.header("authorization").is_none()));
    let question = "/token?service=reg&scope=repository:models/m:pull";
    assert!(tokens.asked().iter().all(|one| one.path == question), "{:?}", tokens.asked());
    // A password is for who gives out tokens, where the box names it, and for nobody else.
    bench.signs_in(&[registry.host()]);
    bench.fetch_whole(&url);
    assert!(tokens.asked().iter().all(|one| one.header("authorization").is_none()));
    bench.signs_in(&[registry.host(), tokens.host()]);
    bench.fetch_whole(&url);
    assert_eq!(tokens.asked().last().unwrap().header("authorization"), Some(BASIC));
    let shown = |server: &Server| {
        let all = server.asked().into_iter();
        all.filter(|one| one.header("authorization") == Some(BASIC)).count()
    };
    assert_eq!((shown(&registry), shown(&store), shown(&tokens)), (0, 0, 1));
    // What is not there is not there.
    let missing = url.replace("models/m", "models/n");
    assert!(bench.final_word(&missing).contains("answers 404"));
}

#[test]
fn a_registry_whose_tokens_are_not_to_be_had_is_told() {
    let bench = Bench::new();
    let bytes = bench.bytes.clone();
    let store = bench.server(move |asked| Answer::file(asked, &bytes));
    let told = |answer: Answer| {
        let tokens = bench.server(move |_| answer.clone());
        let registry = registry(&bench, tokens.url("/token"), store.url("/kept"));
        bench.final_word(&format!("oci://{}/models/m", registry.host()))
    };
    assert!(told(Answer::status(401)).contains("/token answers 401"));
    assert!(told(Answer::bytes("{\"token\": \"\"}")).contains("gives out no token"));
    assert!(told(Answer::bytes("{\"token\": \"a b\"}")).contains("gives out no token"));
    // One that is not the registry's.
    assert!(told(Answer::bytes("{\"token\": \"other\"}")).contains("answers 401"));
    let plain = Server::start(None, |_| Answer::bytes("{\"token\": \"the-token\"}"));
    let registry = registry(&bench, plain.url("/token"), store.url("/kept"));
    let why = bench.final_word(&format!("oci://{}/models/m", registry.host()));
    assert!(why.contains("without TLS") && plain.asked().is_empty(), "{why}");
    assert_eq!(store.asked(), []);
}

/// The registry of Debian, with TLS and passwords, which runs while this lives.
struct Registry {
    port: u16,
    process: Child,
}

impl Registry {
    fn start(bench: &Bench) -> Self {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let at = |name: &str| bench.path(name).display().to_string();
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '127.0.0.1:{port}', tls: {{certificate: {}, key: {}}}}}\n\
             auth: {{htpasswd: {{realm: ours, path: {}}}}}\n",
            at("blobs"),
            at("server.pem"),
            at("server.key"),
            at("users"),
        );
        fs::write(bench.path("registry.yml"), text).unwrap();
        // bcrypt of "open-sesame".
        let user = "box-1:$2b$04$oFcKrMcaFQRxK8jqChdrv.MARuQKddb2UkfAfDcbyzbjx28uEcney\n";
        fs::write(bench.path("users"), user).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(bench.path("registry.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("docker-registry: {error}; {INSTALL}"));
        let registry = Self { port, process };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(begun.elapsed() < PATIENCE, "docker-registry does not listen");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        registry
    }

    /// Pushes a blob as the specification has it: an upload is begun, and ended with all of it.
    fn push(&self, bench: &Bench, repository: &str) {
        let pem = fs::read(bench.path("ca.pem")).unwrap();
        let root = ureq::tls::Certificate::from_pem(&pem).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ureq::tls::TlsConfig::builder()
            .unversioned_rustls_crypto_provider(provider)
            .root_certs(ureq::tls::RootCerts::new_with_certs(&[root]))
            .build();
        let client =
            ureq::Agent::new_with_config(ureq::Agent::config_builder().tls_config(tls).build());
        let url = format!("https://localhost:{}/v2/{repository}/blobs/uploads/", self.port);
        let begun = client.post(&url).header("Authorization", BASIC).send_empty().unwrap();
        let place = begun.headers()["location"].to_str().unwrap().to_owned();
        let digest = bench.artifact("oci://r/m").sha256;
        let joint = if place.contains('?') { '&' } else { '?' };
        let put = client.put(format!("{place}{joint}digest=sha256:{digest}"));
        let put = put.header("Authorization", BASIC).send(&bench.bytes[..]).unwrap();
        assert_eq!(put.status().as_u16(), 201);
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const INSTALL: &str = "this test needs a registry: apt-get install docker-registry";

#[test]
fn a_registry_that_others_wrote_gives_out_a_file_by_its_hash() {
    let mut bench = Bench::new();
    let registry = Registry::start(&bench);
    registry.push(&bench, "models/m");
    let url = format!("oci://localhost:{}/models/m:3", registry.port);
    // It wants to know who asks, and is told where the box names it.
    assert!(bench.final_word(&url).contains("answers 401"));
    bench.signs_in(&[format!("localhost:{}", registry.port)]);
    bench.fetch_whole(&url);
    // On from where it stopped.
    let part = bench.to().join(format!(".{}.part", bench.artifact(&url).sha256));
    fs::write(part, &bench.bytes[..123_456]).unwrap();
    bench.fetch_whole(&url);
    assert!(bench.final_word(&url.replace("models/m", "models/n")).contains("answers 404"));
    fs::write(bench.path("password"), "letmein\n").unwrap();
    assert!(bench.final_word(&url).contains("answers 401"));
}
