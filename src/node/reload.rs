//! Taking up changed TLS files without a restart: the certificate with its key, and what is trusted (CAs, revocation lists).
//!
//! The two are independent: a pair that cannot be used does not keep a revocation list from counting. What cannot be used leaves
//! the old in force, is said once, and is tried again. Files are looked at once a second instead of being watched: that works on
//! every file system, through symbolic links and mounts too, and costs a few `stat` calls.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use super::config::{Config, Tls, WebRoots, read_secret};
use crate::base::count::{Counts, labels};
use crate::base::crypto::sha256;
use crate::base::limits::{TLS_EXPIRY_INTERVAL, TLS_FILES_INTERVAL, TLS_WARNING_INTERVAL};
use crate::base::secret::Secret;
use crate::base::{Context as _, Domain, Fault, UnixMillis};
use crate::identity::tls::days_left;
use crate::transport::trust::Source;
use crate::transport::{NodeTls, PeerTrust, Trust, TrustSources};

/// Where operating systems keep the CAs that the web trusts, all in one PEM file.
const SYSTEM_ROOTS: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// What tells that a file is not what it was, without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    length: u64,
    /// Content and, for permissions, metadata: seconds and nanoseconds.
    changed: [i64; 4],
}

impl Stamp {
    /// Of a file, through symbolic links; `None` when there is none that can be seen.
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok()?;
        let changed = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
        Some(Self { device: metadata.dev(), inode: metadata.ino(), length: metadata.len(), changed })
    }
}

type Stamps = Vec<Option<Stamp>>;

/// The node's certificate with its chain, and its key, as the files have them.
struct Pair {
    chain: String,
    key: Secret,
}

impl Pair {
    fn read(tls: &Tls) -> Result<Self, Fault> {
        let chain = std::fs::read_to_string(&tls.certificate).with_context(|| cannot_read(&tls.certificate))?;
        Ok(Self { chain, key: read_secret(&tls.key)? })
    }

    fn digest(&self) -> [u8; 32] {
        digest([self.chain.as_bytes(), self.key.expose()])
    }
}

fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", path.display())
}

/// One digest of several contents.
fn digest<'a>(contents: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let digests: Vec<u8> = contents.into_iter().flat_map(sha256).collect();
    sha256(&digests)
}

fn read_trust(tls: &Tls, peers: &BTreeMap<Domain, PeerTrust>) -> Result<TrustSources, Fault> {
    let source = |path: &PathBuf| {
        let octets = std::fs::read(path).with_context(|| cannot_read(path))?;
        Ok(Source { name: path.display().to_string(), octets })
    };
    let web_roots = match &tls.web_roots {
        None => None,
        Some(WebRoots::File(path)) => Some(path.clone()),
        Some(WebRoots::System) => Some(system_roots().with_context(|| {
            format!("tls.web_roots: this system keeps no roots at {}; give their path", SYSTEM_ROOTS.join(" or "))
        })?),
    };
    Ok(TrustSources {
        authorities: tls.authorities.iter().map(source).collect::<Result<_, Fault>>()?,
        web_roots: web_roots.iter().map(source).collect::<Result<_, Fault>>()?,
        crls: tls.crls.iter().map(source).collect::<Result<_, Fault>>()?,
        refuse_stale_crls: tls.refuse_stale_crls,
        peers: peers.clone(),
    })
}

fn trust_digest(sources: &TrustSources) -> [u8; 32] {
    let kinds = [&sources.authorities, &sources.web_roots, &sources.crls];
    digest(kinds.into_iter().flatten().map(|source| source.octets.as_slice()))
}

fn system_roots() -> Option<PathBuf> {
    SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.exists())
}

/// What was last taken from one group of files.
#[derive(Debug, Default)]
struct Part {
    /// Of the contents in force.
    digest: [u8; 32],
    /// Why the contents there are now cannot be used, as it was said.
    fault: Option<String>,
}

#[derive(Debug, Default)]
struct State {
    /// The files as they were before they were read last.
    stamps: Stamps,
    pair: Part,
    trust: Part,
}

/// Keeps a node's TLS identity what its files say.
#[derive(Debug)]
pub struct Reloader {
    config: Tls,
    tls: NodeTls,
    state: Mutex<State>,
    counts: Arc<ReloadCounts>,
}

labels! {
    /// What became of changed files.
    pub(super) enum ReloadOutcome {
        /// They are in use.
        Taken = "taken",
        /// They cannot be used; the old ones stay. Counted when the reason is another than before.
        Refused = "refused",
    }
}

/// What became of changed files since the start.
#[derive(Debug, Default)]
pub(super) struct ReloadCounts {
    /// The node's certificate and key.
    pub(super) pair: Counts<ReloadOutcome>,
    /// CAs and revocation lists.
    pub(super) trust: Counts<ReloadOutcome>,
}

impl Reloader {
    /// Reads the files for the first time. Fails with one sentence when they cannot be used.
    pub fn load(config: &Config) -> Result<Self, Fault> {
        let stamps = stamps(&config.tls);
        let sources = read_trust(&config.tls, &config.peer_trust())?;
        let pair = Pair::read(&config.tls)?;
        let tls = NodeTls::new(&config.domain, &pair.chain, &pair.key, Trust::read(&sources)?)?;
        let part = |digest| Part { digest, fault: None };
        let state = State { stamps, pair: part(pair.digest()), trust: part(trust_digest(&sources)) };
        Ok(Self { config: config.tls.clone(), tls, state: Mutex::new(state), counts: Arc::default() })
    }

    /// What became of changed files.
    pub(super) fn counts(&self) -> &Arc<ReloadCounts> {
        &self.counts
    }

    /// The TLS identity.
    pub fn tls(&self) -> &NodeTls {
        &self.tls
    }

    /// Reads the files and takes up what has changed, as an operator has asked: what cannot be used is said again. Reads files
    /// and may judge many certificates: not for a thread that others wait for.
    pub fn reload(&self) -> Result<(), Fault> {
        let mut state = self.state();
        (state.pair.fault, state.trust.fault) = (None, None);
        let before = (state.pair.digest, state.trust.digest);
        self.take(&mut state);
        match state.pair.fault.as_ref().or(state.trust.fault.as_ref()) {
            None => {
                if before == (state.pair.digest, state.trust.digest) {
                    tracing::info!("the TLS files have not changed");
                }
                Ok(())
            }
            Some(fault) => Err(Fault::new(fault.clone())),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether the files have changed since they were read; takes them up when they look as `before`. Returns how they look.
    fn look(&self, before: &Stamps) -> Stamps {
        let now = stamps(&self.config);
        let mut state = self.state();
        if now != state.stamps && now == *before {
            self.take(&mut state);
        }
        now
    }

    /// Tries again what could not be used: what is not valid yet becomes so without a change of the file.
    fn retry(&self) {
        let mut state = self.state();
        if state.pair.fault.is_some() || state.trust.fault.is_some() {
            self.take(&mut state);
        }
    }

    fn take(&self, state: &mut State) {
        // Before they are read: a change in between is then seen by the next look.
        state.stamps = stamps(&self.config);
        let taken = Pair::read(&self.config).and_then(|pair| {
            let digest = pair.digest();
            let renewed = digest != state.pair.digest;
            if renewed {
                self.tls.renew(&pair.chain, &pair.key, UnixMillis::now())?;
            }
            Ok(renewed.then_some(digest))
        });
        match taken {
            Ok(None) => state.pair.fault = None,
            Ok(Some(digest)) => {
                state.pair = Part { digest, fault: None };
                let days = days_left(self.tls.not_after(), UnixMillis::now());
                self.counts.pair.one(ReloadOutcome::Taken);
                tracing::info!(days_left = days, "a new TLS certificate is in use");
            }
            Err(fault) => {
                if say_once(&mut state.pair.fault, "the new TLS certificate is not used, the old one stays", &fault) {
                    self.counts.pair.one(ReloadOutcome::Refused);
                }
            }
        }
        let taken = read_trust(&self.config, self.tls.trust().peers()).and_then(|sources| {
            let digest = trust_digest(&sources);
            let changed = digest != state.trust.digest;
            Ok(if changed { Some((digest, Trust::read(&sources)?)) } else { None })
        });
        match taken {
            Ok(None) => state.trust.fault = None,
            Ok(Some((digest, trust))) => {
                state.trust = Part { digest, fault: None };
                let (authorities, crls) = (trust.authorities(), trust.crls().count());
                let cut = self.tls.set_authorities(&trust);
                self.counts.trust.one(ReloadOutcome::Taken);
                tracing::info!(authorities, crls, "whom this node trusts was read anew");
                log_cut(&cut);
            }
            Err(fault) => {
                if say_once(&mut state.trust.fault, "the new CAs and revocation lists are not used, the old ones stay", &fault) {
                    self.counts.trust.one(ReloadOutcome::Refused);
                }
            }
        }
    }
}

fn stamps(tls: &Tls) -> Stamps {
    let system = match &tls.web_roots {
        Some(WebRoots::System) => system_roots(),
        Some(WebRoots::File(path)) => Some(path.clone()),
        None => None,
    };
    let files = [&tls.certificate, &tls.key].into_iter().chain(&tls.authorities).chain(&tls.crls).chain(&system);
    files.map(|path| Stamp::of(path)).collect()
}

/// Logs a fault unless it is the one that was logged last. Whether it has.
fn say_once(said: &mut Option<String>, what: &str, fault: &Fault) -> bool {
    let text = fault.to_string();
    let is_new = said.as_ref() != Some(&text);
    if is_new {
        tracing::warn!("{what}: {text}");
        *said = Some(text);
    }
    is_new
}

fn log_cut(cut: &[crate::transport::sessions::Cut]) {
    for cut in cut {
        tracing::warn!(peer = %cut.domain, "a connection is closed: {}", cut.reason);
    }
}

/// Takes up changed files and warns of what expires, until the node stops.
pub(super) async fn run(reloader: Arc<Reloader>, mut stopping: watch::Receiver<bool>) {
    let mut interval = tokio::time::interval(TLS_FILES_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut seen, mut warnings, mut next_expiry) = (Stamps::new(), Warnings::default(), Instant::now());
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            _ = stopping.wait_for(|stop| *stop) => return,
        }
        let expiry = Instant::now() >= next_expiry;
        if expiry {
            next_expiry = Instant::now() + TLS_EXPIRY_INTERVAL;
        }
        let reloader = reloader.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let seen = reloader.look(&seen);
            if expiry {
                reloader.retry();
                reloader.watch_expiry(&mut warnings);
            }
            (seen, warnings)
        });
        match looked.await {
            Ok(looked) => (seen, warnings) = looked,
            Err(error) => {
                tracing::error!(%error, "looking at the TLS files failed");
                (seen, warnings) = Default::default();
            }
        }
    }
}

impl Reloader {
    fn watch_expiry(&self, warnings: &mut Warnings) {
        let now = UnixMillis::now();
        log_cut(&self.tls.cut_expired(now));
        let mut ends = vec![(Subject::Own, self.tls.not_after())];
        ends.extend(self.tls.peers_not_after().into_iter().map(|(peer, end)| (Subject::Peer(peer), end)));
        for (subject, days) in warnings.due(ends, self.config.warn_days, now) {
            match subject {
                Subject::Own if days < 0 => {
                    tracing::error!("this node's TLS certificate has expired: no peer and no client can connect; renew it");
                }
                Subject::Own => tracing::warn!(days_left = days, "this node's TLS certificate will expire; renew it"),
                Subject::Peer(peer) => tracing::warn!(%peer, days_left = days, "a peer's TLS certificate will expire"),
                Subject::Crl(_) => {}
            }
        }
        let trust = self.tls.trust();
        let stale = trust.stale_crls(now).map(|list| (Subject::Crl(list.issuer.clone()), list.next_update));
        for (subject, _) in warnings.due(stale, 0, now) {
            if let Subject::Crl(issuer) = subject {
                let refused = self.config.refuse_stale_crls;
                tracing::warn!(issuer, refused, "a revocation list is overdue: fetch the CA's next one");
            }
        }
    }
}

/// What expires.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    /// This node's certificate.
    Own,
    /// A connected peer's.
    Peer(Domain),
    /// The revocation list of this issuer.
    Crl(String),
}

/// When the log spoke last of what expires.
#[derive(Debug, Default)]
struct Warnings(BTreeMap<Subject, UnixMillis>);

impl Warnings {
    /// Those of `ends` of which the log is to speak now, with the days they have left: `warn_days` or fewer, and not spoken of
    /// within [`TLS_WARNING_INTERVAL`].
    fn due(
        &mut self,
        ends: impl IntoIterator<Item = (Subject, UnixMillis)>,
        warn_days: u32,
        now: UnixMillis,
    ) -> Vec<(Subject, i64)> {
        self.0.retain(|_, said| said.plus(TLS_WARNING_INTERVAL) > now);
        let mut due = Vec::new();
        for (subject, end) in ends {
            let days = days_left(end, now);
            if days < i64::from(warn_days) && !self.0.contains_key(&subject) {
                self.0.insert(subject.clone(), now);
                due.push((subject, days));
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::identity::{TlsCa, TlsCertificateOptions};
    use crate::node::config::{replace_public, write_public, write_secret};

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    struct Files {
        directory: tempfile::TempDir,
        ca: TlsCa,
        config: Config,
    }

    impl Files {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let ca = TlsCa::create("Test CA", UnixMillis::now()).expect("a CA");
            let mut config = Config::parse(include_str!("../../configs/node.toml")).expect("the sample");
            let path = |name: &str| directory.path().join(name);
            config.tls = Tls::new(path("node.pem"), path("node.key"), path("authorities.pem"));
            config.tls.crls = vec![path("crl.pem")];
            write_public(&path("authorities.pem"), &ca.certificate_pem()).expect("written");
            let files = Self { directory, ca, config };
            files.revoke_none();
            files.issue(90);
            files
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        /// A new pair that is good for so many days.
        fn issue(&self, days: u32) {
            let options =
                TlsCertificateOptions { lifetime: DAY * days, ..TlsCertificateOptions::for_domain(&self.config.domain) };
            let issued = self.ca.issue(&options, UnixMillis::now()).expect("a certificate");
            replace_public(&self.path("node.pem"), &issued.chain_pem).expect("written");
            let _ = std::fs::remove_file(self.path("node.key"));
            write_secret(&self.path("node.key"), &issued.key_pem).expect("written");
        }

        fn revoke_none(&self) {
            let list = self.ca.revocation_list(&[], UnixMillis::now(), DAY).expect("a list");
            replace_public(&self.path("crl.pem"), &list).expect("written");
        }
    }

    #[test]
    fn a_change_is_taken_up_once_it_is_seen_twice_alike() {
        let files = Files::new();
        let reloader = Reloader::load(&files.config).expect("loaded");
        let first = reloader.tls().chain();
        let seen = reloader.look(&Stamps::new());
        assert_eq!(reloader.look(&seen), seen);
        assert_eq!(reloader.tls().chain(), first, "nothing has changed");
        files.issue(90);
        let seen = reloader.look(&seen);
        assert_eq!(reloader.tls().chain(), first, "it may be being written");
        reloader.look(&seen);
        assert_ne!(reloader.tls().chain(), first);
    }

    #[test]
    fn a_bad_pair_keeps_the_old_one_is_said_once_and_stops_no_revocation_list() {
        let files = Files::new();
        let reloader = Reloader::load(&files.config).expect("loaded");
        let (chain, list) = (reloader.tls().chain(), reloader.tls().trust());
        files.issue(90);
        std::fs::remove_file(files.path("node.key")).expect("removed");
        let other = files.ca.issue(&TlsCertificateOptions::for_domain(&files.config.domain), UnixMillis::now()).expect("one");
        write_secret(&files.path("node.key"), &other.key_pem).expect("written");
        let serial = crate::identity::tls::crl::serial(&chain[0]).expect("a serial");
        let revoked = crate::identity::Revoked { serial, at: UnixMillis::now() };
        let text = files.ca.revocation_list(&[revoked], UnixMillis::now(), DAY).expect("a list");
        replace_public(&files.path("crl.pem"), &text).expect("written");
        let fault = reloader.reload().expect_err("another's key").to_string();
        assert!(fault.contains("the TLS key is not that of the certificate"), "{fault}");
        assert_eq!(reloader.tls().chain(), chain);
        assert_eq!(list.crls().next().map(|list| list.revoked.len()), Some(0));
        assert_eq!(reloader.tls().trust().crls().next().map(|list| list.revoked.len()), Some(1));
        // Said once: what was said is kept until it is something else.
        let said = reloader.state().pair.fault.clone();
        assert_eq!(said, Some(fault));
        reloader.retry();
        assert_eq!(reloader.state().pair.fault, said);
        files.issue(90);
        reloader.retry();
        assert_eq!(reloader.state().pair.fault, None);
        assert_ne!(reloader.tls().chain(), chain);
    }

    #[test]
    fn what_is_different_for_a_peer_since_the_start_outlives_a_reload() {
        let files = Files::new();
        let reloader = Reloader::load(&files.config).expect("loaded");
        let peer: Domain = "b.test".parse().expect("a domain");
        let said = BTreeMap::from([(peer, PeerTrust { pins: vec![crate::transport::Pin([7; 32])], wildcard: true })]);
        reloader.tls().set_peer_trust(said.clone());
        let second = TlsCa::create("Second CA", UnixMillis::now()).expect("a CA");
        let both = format!("{}{}", files.ca.certificate_pem(), second.certificate_pem());
        replace_public(&files.path("authorities.pem"), &both).expect("written");
        reloader.reload().expect("taken up");
        let trust = reloader.tls().trust();
        assert_eq!((trust.authorities(), trust.peers().as_ref()), (2, &said));
    }

    #[test]
    fn bad_trust_keeps_the_old_one_and_stops_no_renewal() {
        let files = Files::new();
        let reloader = Reloader::load(&files.config).expect("loaded");
        let chain = reloader.tls().chain();
        let stranger = TlsCa::create("Test CA", UnixMillis::now()).expect("a CA");
        let list = stranger.revocation_list(&[], UnixMillis::now(), DAY).expect("a list");
        for (file, text, why) in [
            ("crl.pem", list.as_str(), "is not signed by the trusted CA that it names"),
            ("crl.pem", "", "there is no revocation list in it"),
            ("authorities.pem", "", "holds no certificate"),
        ] {
            let good = std::fs::read_to_string(files.path(file)).expect("there");
            replace_public(&files.path(file), text).expect("written");
            let fault = reloader.reload().expect_err("refused").to_string();
            assert!(fault.contains(why), "{fault}");
            assert_eq!(reloader.tls().trust().authorities(), 1);
            replace_public(&files.path(file), &good).expect("written");
        }
        files.issue(90);
        std::fs::remove_file(files.path("crl.pem")).expect("removed");
        let fault = reloader.reload().expect_err("no list").to_string();
        assert!(fault.contains("cannot read") && fault.contains("crl.pem"), "{fault}");
        assert_ne!(reloader.tls().chain(), chain);
    }

    #[test]
    fn the_log_speaks_of_an_expiry_from_the_configured_days_on_and_once_a_day() {
        let (now, mut warnings) = (UnixMillis::now(), Warnings::default());
        let peer = Subject::Peer("b.test".parse().expect("a domain"));
        let ends = |now: UnixMillis| [(Subject::Own, now.plus(DAY * 14)), (peer.clone(), now.plus(DAY * 14).minus(DAY))];
        assert_eq!(warnings.due(ends(now), 14, now), [(peer.clone(), 13)]);
        assert_eq!(warnings.due(ends(now), 14, now.plus(DAY / 2)), [(Subject::Own, 13)], "a part of a day is none");
        assert_eq!(warnings.due(ends(now), 14, now.plus(DAY)), [(peer, 12)], "again after a day");
        let own = |end| warnings_of(end, now);
        assert_eq!(own(now.minus(DAY * 2)), [(Subject::Own, -2)]);
        assert_eq!(own(now.plus(DAY * 30)), []);
    }

    fn warnings_of(end: UnixMillis, now: UnixMillis) -> Vec<(Subject, i64)> {
        Warnings::default().due([(Subject::Own, end)], 14, now)
    }

    #[test]
    fn web_roots_are_read_from_the_file_given_and_what_cannot_be_used_is_passed_over() {
        let mut files = Files::new();
        files.config.tls.authorities = None;
        files.config.tls.crls.clear();
        assert!(Reloader::load(&files.config).expect_err("nobody is trusted").to_string().contains("no peer can be trusted"));
        let roots = files.path("roots.pem");
        let odd = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(&roots, format!("{odd}{}", files.ca.certificate_pem())).expect("written");
        files.config.tls.web_roots = Some(WebRoots::File(roots.clone()));
        assert_eq!(Reloader::load(&files.config).expect("loaded").tls().trust().authorities(), 1);
        std::fs::write(&roots, odd).expect("written");
        let fault = Reloader::load(&files.config).expect_err("none").to_string();
        assert!(fault.contains("holds no certificate that can be used"), "{fault}");
        // The system's own, where it has any.
        files.config.tls.web_roots = Some(WebRoots::System);
        match (system_roots(), Reloader::load(&files.config)) {
            (Some(_), loaded) => assert!(loaded.expect("loaded").tls().trust().authorities() > 20),
            (None, loaded) => assert!(loaded.expect_err("none").to_string().contains("give their path")),
        }
    }
}
