//! [`Core`]: everything a client knows, in memory and on disk. All of its work is synchronous and ends with one state write;
//! what goes over the network happens between two such pieces of work.

use std::collections::HashMap;
use std::sync::Arc;

use openmls::group::{GroupId, MlsGroup};
use openmls_traits::OpenMlsProvider as _;
use serde_json::{Value, json};

use super::error::ClientError;
use super::event::Event;
use super::history::{History, HistoryLine};
use super::joining::receipt_is_of;
use super::log::{self, EventLog};
use super::mls::{self, Leaf, Provider};
use super::renewal::{kept_info, pin};
use super::seal;
use super::state::{Group, GroupStatus, Queue, State, Store};
use crate::base::bytes::hex;
use crate::base::{ClientUri, Context as _, Domain, Fault, GroupUri, UnixMillis, limits};
use crate::identity::AsRoots;
use crate::wire::ds::ClientQueueConfig;
use crate::wire::info::DomainInfo;
use crate::wire::qs::{QueueBinding, QueueInformation};
use crate::wire::receipt::Receipt;

pub(super) type Result<T> = std::result::Result<T, ClientError>;

/// A client's state and what works on it.
pub(super) struct Core {
    /// `None` once the client is closed.
    store: Option<Store>,
    pub(super) state: State,
    pub(super) provider: Provider,
    pub(super) groups: HashMap<GroupUri, MlsGroup>,
    pub(super) leaf: Arc<Leaf>,
    pub(super) me: ClientUri,
    roots: HashMap<Domain, Arc<AsRoots>>,
    /// Domains that are to be asked anew: something that came at this time led to none of their roots.
    pub(super) doubted: HashMap<Domain, UnixMillis>,
    history: History,
    log: Option<EventLog>,
    /// Event log lines and history lines that the next state write makes true.
    new_log_lines: Vec<String>,
    new_history_lines: Vec<HistoryLine>,
    /// Events that the next state write makes true.
    pub(super) new_events: Vec<Event>,
    /// Events that a state write has made true, for handing out.
    pub(super) events: Vec<Event>,
    /// Whether a piece of work has begun and not ended: one that panicked leaves nobody knows what in memory.
    working: bool,
    /// Why nothing more may happen: memory is ahead of a disk that could not be written.
    broken: Option<String>,
}

impl Core {
    /// Takes up a stored client; lines that a crash kept out of history and log are written.
    pub(super) fn new(
        store: Store,
        state: State,
        provider: Provider,
        leaf: Arc<Leaf>,
        log: Option<&std::path::Path>,
    ) -> Result<Self> {
        let me: ClientUri = state.account.client.parse().context("the state names no client")?;
        let history = History::open(store.dir(), &state.history)?;
        let log = log.map(|path| EventLog::open(path, &me.to_string(), &state.unlogged)).transpose()?;
        let mut groups = HashMap::new();
        for (name, group) in &state.groups {
            let uri: GroupUri = name.parse().context("the state names a group that is none")?;
            let loaded = MlsGroup::load(provider.storage(), &GroupId::from_slice(&uri.to_bytes()))
                .with_context(|| format!("could not load {name}"))?;
            match loaded {
                Some(loaded) => drop(groups.insert(uri, loaded)),
                None if matches!(group.status, GroupStatus::Left | GroupStatus::Deleted | GroupStatus::Stuck) => {}
                None => return Err(Fault::new(format!("the state has lost the keys of {name}")).into()),
            }
        }
        Ok(Self {
            store: Some(store),
            state,
            provider,
            groups,
            leaf,
            me,
            roots: HashMap::new(),
            doubted: HashMap::new(),
            history,
            log,
            new_log_lines: Vec::new(),
            new_history_lines: Vec::new(),
            new_events: Vec::new(),
            events: Vec::new(),
            working: false,
            broken: None,
        })
    }

    /// Runs one piece of work. None is begun once the client is closed, or when what is in memory may not be what is on disk:
    /// acting on that would acknowledge what a crash forgets and use keys twice.
    pub(super) fn run<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.usable()?;
        if self.working {
            self.broken = Some("an earlier piece of work was interrupted by a bug".into());
            self.usable()?;
        }
        self.working = true;
        let done = work(self);
        self.working = false;
        done
    }

    fn usable(&self) -> Result<()> {
        if let Some(why) = &self.broken {
            return Err(Fault::new(format!("the client must be opened again: {why}")).into());
        }
        match self.store {
            Some(_) => Ok(()),
            None => Err(ClientError::Invalid("the client is closed".into())),
        }
    }

    /// Writes the state; then what it makes true is written to history and log, and its events may be handed out.
    pub(super) fn save(&mut self) -> Result<()> {
        self.usable()?;
        let Some(store) = &self.store else { return Ok(()) };
        let written = (|| {
            if self.state.history.len() >= limits::CLIENT_UNSYNCED_LINES_MAX {
                self.history.sync()?;
                self.state.history.clear();
            }
            let kept = self.state.history.len();
            self.state.history.append(&mut self.new_history_lines);
            self.state.unlogged = std::mem::take(&mut self.new_log_lines);
            mls::write_message_secrets(&self.provider, self.groups.values_mut())?;
            self.provider.values(|values| store.save(&self.state, values))?;
            self.history.append(self.state.history.iter().skip(kept))?;
            if let Some(log) = &mut self.log {
                self.state.unlogged.iter().try_for_each(|line| log.append(line))?;
            }
            Ok::<_, Fault>(())
        })();
        match written {
            Ok(()) => {
                self.events.append(&mut self.new_events);
                Ok(())
            }
            Err(fault) => {
                self.broken = Some(fault.to_string());
                Err(fault.into())
            }
        }
    }

    /// Lets go of the state directory; nothing more can be done.
    pub(super) fn close(&mut self) {
        self.store = None;
    }

    /// A line for the event log about what the next state write makes true.
    pub(super) fn record(&mut self, event: &str, fields: Value) {
        if self.log.is_some() {
            self.state.log_count += 1;
            let line = log::line(&self.me.to_string(), event, Some(self.state.log_count), fields);
            self.new_log_lines.push(line);
        }
    }

    /// A line for the event log about something that leaves no trace in the state.
    pub(super) fn note(&mut self, event: &str, fields: Value) -> Result<()> {
        match &mut self.log {
            Some(log) => Ok(log.append(&log::line(&self.me.to_string(), event, None, fields))?),
            None => Ok(()),
        }
    }

    /// A line for the history.
    pub(super) fn remember(&mut self, sequence: Option<u64>, at_ms: u64, group: &GroupUri, sender: &ClientUri, text: &str) {
        self.state.history_count += 1;
        self.new_history_lines.push(HistoryLine {
            line: self.state.history_count,
            sequence,
            at_ms,
            group: group.to_string(),
            sender: sender.to_string(),
            text: text.to_owned(),
        });
    }

    /// The time as the node has it, as far as is known.
    pub(super) fn now(&self) -> UnixMillis {
        UnixMillis(UnixMillis::now().0.saturating_add_signed(self.state.clock_offset_ms))
    }

    pub(super) fn queue(&self) -> Result<&Queue> {
        self.state.queue.as_ref().ok_or_else(|| ClientError::Invalid("this client has no queue yet: enrol it first".into()))
    }

    /// What `domain` published when it was first seen.
    pub(super) fn domain_info(&self, domain: &Domain) -> Option<DomainInfo> {
        self.state.domains.get(domain.as_str()).and_then(|octets| kept_info(&octets.0).ok())
    }

    /// The pinned AS roots of `domain`; `None` when it has not been seen yet.
    pub(super) fn roots(&mut self, domain: &Domain) -> Option<Arc<AsRoots>> {
        if let Some(roots) = self.roots.get(domain) {
            return Some(roots.clone());
        }
        let info = self.domain_info(domain)?;
        let roots = info.as_roots.into_iter().map(crate::wire::Opaque::into_vec).collect();
        let roots = Arc::new(AsRoots::new(domain.clone(), roots).ok()?.asked_at(UnixMillis(0)));
        self.roots.insert(domain.clone(), roots.clone());
        Some(roots)
    }

    /// Pins what `domain` publishes. Roots that differ from those seen before are refused unless one of these vouches for them.
    pub(super) fn pin(&mut self, domain: &Domain, info: &DomainInfo) -> Result<()> {
        let now = self.now();
        let pinned = pin(&mut self.state, domain, info, now);
        // Whatever came of it: it was asked, and after what led there, wrong as the clock may be.
        let asked = self.doubted.remove(domain).map_or(now, |doubted| doubted.max(now));
        self.roots.remove(domain);
        if let Some(roots) = self.roots(domain) {
            self.roots.insert(domain.clone(), Arc::new(AsRoots::clone(&roots).asked_at(asked)));
        }
        pinned
    }

    /// A queue config for a leaf of ours, sealed to the own QS.
    pub(super) fn queue_config(&self, binding: QueueBinding) -> Result<ClientQueueConfig> {
        let queue = self.queue()?;
        let domain = self.me.domain();
        let info = self.domain_info(domain).context("the own domain's keys are not known")?;
        let key = info.qs_keys.first().context("the own domain publishes no key to seal queue information to")?;
        let information = QueueInformation { queue_id: queue.id, generation: queue.generation, binding };
        Ok(seal::queue_config(domain, key, &information)?)
    }

    /// What is kept of `group`; an error for people when there is no such group, or none that can be worked on.
    pub(super) fn member_of(&self, group: &GroupUri) -> Result<&MlsGroup> {
        let kept = self.state.groups.get(&group.to_string());
        match (kept.map(|kept| kept.status), self.groups.get(group)) {
            (Some(GroupStatus::Member), Some(mls)) => Ok(mls),
            (Some(GroupStatus::Creating), _) => Err(ClientError::Invalid(format!("{group} is not confirmed by its hub yet"))),
            (Some(GroupStatus::Stuck), _) => {
                Err(ClientError::Invalid(format!("{group} cannot be followed now: this client has to resync first")))
            }
            (Some(GroupStatus::Leaving), _) => Err(ClientError::Invalid(format!("this client is leaving {group}"))),
            (Some(GroupStatus::Deleted), _) => Err(ClientError::Invalid(format!("{group} was deleted"))),
            (Some(GroupStatus::Left), _) => Err(ClientError::Invalid(format!("no longer a member of {group}"))),
            _ => Err(ClientError::Invalid(format!("not a member of {group}"))),
        }
    }

    pub(super) fn group_mut(&mut self, group: &GroupUri) -> Option<&mut Group> {
        self.state.groups.get_mut(&group.to_string())
    }

    /// Logs the epoch that `group` is in now.
    pub(super) fn record_epoch(&mut self, group: &GroupUri) {
        let Some(mls) = self.groups.get(group) else { return };
        let members: Vec<String> = mls::members(mls).into_iter().map(|(_, client)| client.to_string()).collect();
        let fields = json!({
            "group": group.to_string(),
            "epoch": mls.epoch().as_u64(),
            "members": members,
            "authenticator": hex(mls.epoch_authenticator().as_slice()),
        });
        self.record("epoch", fields);
    }

    /// Whether `receipt` is the hub's word that the Commit with `hash` began `epoch` of `group` (X9). The hub's key is the one
    /// the members agreed on: an entry of `external_senders`.
    pub(super) fn receipt_is_good(&self, group: &GroupUri, epoch: u64, hash: &[u8; 32], receipt: &Receipt) -> bool {
        self.groups.get(group).is_some_and(|mls| receipt_is_of(mls, group, epoch, hash, receipt))
    }
}
