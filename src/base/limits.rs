//! Every limit, time-out and retry has its home here, with its unit last in its name. [`Limits`] is what an operator may
//! set, with the defaults; the constants behind it are fixed.

mod configurable;
mod peers;

pub use configurable::Limits;
pub use peers::{PeerLimits, PeerLimitsOverride};

use std::time::Duration;

// --- Frames and lists ---

/// The largest frame (one request, answer or lane batch) either side accepts, in octets without its length prefix.
pub const FRAME_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The largest frame accepted from a client, in octets; a proxied request wraps it in a peer frame of at most [`FRAME_BYTES_MAX`].
pub const CLIENT_FRAME_BYTES_MAX: usize = 3 * 1024 * 1024;

/// The largest frame accepted on a client connection without a certificate: `info` and `enrol` need little.
pub const STRANGER_FRAME_BYTES_MAX: usize = 32 * 1024;

/// Memory for a frame is taken in steps of at most this many octets, as they arrive: a length prefix alone costs nothing.
pub const FRAME_CHUNK_BYTES: usize = 64 * 1024;

/// How long reading one request frame from an open stream may take.
pub const FRAME_READ_TIMEOUT: Duration = Duration::from_secs(10);

/// And each [`FRAME_CHUNK_BYTES`] of it, or what there is of them: an octet a second is no request.
pub const REQUEST_PACE: Duration = Duration::from_secs(5);

/// How long the other side may take for all of an answer.
pub const ANSWER_WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// And for each [`FRAME_CHUNK_BYTES`] of it.
pub const ANSWER_PACE: Duration = Duration::from_secs(10);

/// How long a subscriber may take for each [`FRAME_CHUNK_BYTES`] of a push: its user may look at something else.
pub const PUSH_PACE: Duration = Duration::from_secs(60);

/// The most elements in one list of a frame: an element of one octet would otherwise cost many times that in memory.
pub const LIST_ELEMENTS_MAX: usize = 16_384;

/// The longest reason text put into a connection close or an error's detail, in octets.
pub const REASON_BYTES_MAX: usize = 512;

// --- Credentials and certificates ---

/// The most certificates in a credential chain: client and user (the AS root is pinned, never sent along).
pub const CHAIN_CERTIFICATES_MAX: usize = 2;

/// The largest single certificate, in octets.
pub const CERTIFICATE_BYTES_MAX: usize = 8 * 1024;

/// The most AS roots a domain may publish.
pub const AS_ROOTS_MAX: usize = 8;

/// The most statements about its AS roots that a domain publishes: who has missed more than so many cannot follow by itself (X2).
pub const AS_ROOT_STATEMENTS_MAX: usize = 16;

/// How often the domains whose AS roots are pinned are asked whether they have others by now.
pub const AS_ROOTS_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// How soon after the last time, when a chain leads to no known root.
pub const AS_ROOTS_RETRY: Duration = Duration::from_secs(5);

/// How long a client that asks about a pinned domain waits for that domain to be asked anew.
pub const AS_ROOTS_WAIT: Duration = Duration::from_secs(3);

/// How often a client asks its own domain whether its certificates are to be renewed.
pub const CLIENT_RENEWAL_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// The most TLS CAs that a domain vouches for to its clients.
pub const TLS_CA_HASHES_MAX: usize = 8;

/// The most domains whose AS roots are fetched for one request.
pub const UNKNOWN_DOMAINS_MAX: usize = 16;

/// The largest `domain_info` of another domain, in octets.
pub const DOMAIN_INFO_BYTES_MAX: usize = 128 * 1024;

/// How long an invitation token is valid.
pub const INVITATION_LIFETIME: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How long a user certificate and the client certificates under it are valid.
pub const USER_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How long a domain's AS root and TLS CA are valid.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// How long a node's own TLS certificate is valid when `mimi-node certs issue` makes it.
pub const TLS_CERTIFICATE_LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// Certificates begin this long before they are made, for peers whose clocks are behind.
pub const CERTIFICATE_BACKDATE: Duration = Duration::from_secs(60 * 60);

/// How long a `credential_status` is worth something: after that a hub asks for it again (X1).
pub const CREDENTIAL_STATUS_LIFETIME: Duration = Duration::from_secs(60 * 60);

/// How long a list that cannot be renewed, because its domain does not answer, is used all the same.
pub const CREDENTIAL_STATUS_STALE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// And after how long the domain is asked again in that case.
pub const CREDENTIAL_STATUS_RETRY: Duration = Duration::from_secs(60);

/// The largest `credential_status`, in octets.
pub const CREDENTIAL_STATUS_BYTES_MAX: usize = 1024 * 1024;

/// How often the revocations that are not applied, asked for or passed on are looked after.
pub const CREDENTIAL_STATUS_INTERVAL: Duration = Duration::from_secs(2);

// --- Groups ---

/// The most leaves that any group can have: the ratchet tree, with its certificates, must fit one frame.
pub const GROUP_LEAVES_MAX: usize = 2_000;

/// The largest leaf node of a member, in octets.
pub const LEAF_NODE_BYTES_MAX: usize = 24 * 1024;

/// The leaf nodes of a group together, in octets: the rest of a frame is for parent nodes, GroupInfo and proposals.
pub const LEAF_NODES_BYTES_MAX: usize = 3 * 1024 * 1024;

/// The proposals of members that wait for a group's next Commit together, in octets. An answer carries them beside the tree.
pub const PENDING_PROPOSALS_BYTES_MAX: usize = 256 * 1024;

/// The largest GroupInfo, in octets, over the extensions of its GroupContext: ids, hashes, external_pub, signature.
pub const GROUP_INFO_OVERHEAD_BYTES_MAX: usize = 4 * 1024;

/// The largest proposal of a member (MLSMessage), in octets: a leaf node and its frame.
pub const PROPOSAL_BYTES_MAX: usize = LEAF_NODE_BYTES_MAX + 1024;

/// The largest application message (MLSMessage) that any hub can accept, in octets.
pub const APPLICATION_MESSAGE_BYTES_MAX: usize = 1024 * 1024;

/// How many epochs back an application message may have been encrypted (R2).
pub const APPLICATION_PAST_EPOCHS_MAX: u64 = 4;

/// Of how many Commits a group remembers the hash, so that a committer whose answer was lost learns whether it won.
pub const RECENT_COMMITS_MAX: usize = 64;

/// How many keys that leaves had before a group remembers, so that what was signed with them can be repeated.
pub const FORMER_KEYS_MAX: usize = 64;

/// From how many leaves on the MLS work of a group is done off the threads that serve requests: a Commit then takes milliseconds.
pub const HEAVY_GROUP_LEAVES: usize = 256;

/// After how many log records a group's state is written anew as a snapshot.
pub const GROUP_LOG_RECORDS_MAX: u64 = 64;

/// The clients, and the groups, whose recent requests are counted at once.
pub const RATE_KEYS_MAX: usize = 65_536;

/// The rejected queue informations that wait to be looked into; the next message finds out about any more.
pub const QUEUE_REJECTIONS_MAX: usize = 4_096;

/// The groups that are looked up at once when leaves are to be removed.
pub const GROUPS_AT_ONCE_MAX: u32 = 1_000;

/// The deleted groups that go in one transaction.
pub const PURGE_AT_ONCE_MAX: u64 = 16;

/// How often a request is decided anew, because roots had to be fetched or its group changed under it.
pub const DECISIONS_MAX: usize = 4;

// --- KeyPackages and queues ---

/// The largest KeyPackage (MLSMessage), in octets; two X.509 certificates and a queue config fit several times.
pub const KEY_PACKAGE_BYTES_MAX: usize = 32 * 1024;

/// A KeyPackage that expires sooner than this is no longer handed out (R7).
pub const KEY_PACKAGE_REMAINING_MIN: Duration = Duration::from_secs(60 * 60);

/// The most entries one fetch or push carries.
pub const FETCH_ENTRIES_MAX: u32 = 256;

/// The octets of MLSMessages after which a fetch or push ends early, so that it fits a frame.
pub const FETCH_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The largest sealed client queue information, in octets.
pub const QUEUE_INFORMATION_BYTES_MAX: usize = 512;

/// The sealed queue informations whose opened form is kept (opening costs an HPKE decapsulation).
pub const OPENED_QUEUE_INFORMATION_MAX: usize = 65_536;

/// The most groups of one hub that a queue holds a `messages_lost` of (X4).
pub const QUEUE_MARKERS_PER_HUB_MAX: u64 = 10_000;

/// The most groups of one hub that a KeyPackage of last resort brings its client into (X3).
pub const INVITE_GROUPS_PER_HUB_MAX: usize = 1_000;

/// An invite that would be good for longer than this is none: no KeyPackage lives so long (X3).
pub const INVITE_LIFETIME_MAX: Duration = Duration::from_secs(100 * 24 * 60 * 60);

/// The most users and domains that one user may block (X5).
pub const BLOCKS_PER_USER_MAX: u64 = 1_000;

/// How many queues, of those that hold old entries, one look finds.
pub const AGED_QUEUES_AT_ONCE_MAX: usize = 1_000;

/// How many old entries of a queue become markers in one transaction.
pub const AGED_ENTRIES_AT_ONCE_MAX: u64 = 1_000;

// --- Lanes ---

/// The most frames in one lane batch to one peer, over all lanes.
pub const LANE_BATCH_FRAMES_MAX: usize = 256;

/// The octets of MLSMessages after which a lane batch is closed.
pub const LANE_BATCH_BYTES_MAX: usize = 1024 * 1024;

/// The most recipients in one lane batch: each may cost an HPKE decapsulation.
pub const LANE_BATCH_RECIPIENTS_MAX: usize = 8_192;

/// The most lanes in one batch to one peer.
pub const LANES_PER_BATCH_MAX: usize = 64;

/// The frames of a lane whose answers the receiver keeps, so that a repeat is answered as before. At least one batch.
pub const LANE_ANSWERS_KEPT: u64 = 1_024;

/// The requests with frames that are on their way to one peer at once; a lane is in at most one of them.
pub const LANE_REQUESTS_AT_ONCE_MAX: usize = 4;

/// While a request with frames is not answered for so long, the next one, with frames of other lanes, goes out beside it. Sooner
/// would make many small requests of few large ones.
pub const LANE_REQUEST_PATIENCE: Duration = Duration::from_millis(50);

/// A peer that asks for a longer wait before its lanes are tried again is asked again all the same after this long.
pub const LANE_RETRY_AFTER_MAX: Duration = Duration::from_secs(10 * 60);

/// How often the bounds of lanes are looked at. A lane can be over them for so long.
pub const LANE_BOUNDS_INTERVAL: Duration = Duration::from_secs(10);

/// A lane that is over a bound loses this part of what it may hold besides what is over, so that it does not end again at once.
pub const LANE_SLACK_DIVISOR: u64 = 16;

/// How many dead frames of a lane are swept away in one transaction.
pub const LANE_SWEEP_AT_ONCE_MAX: u64 = 500;

/// How many different sets of recipients of lost frames are looked at, to tell those who are no members any more.
pub const LANE_LOST_RECIPIENTS_MAX: usize = 64;

/// How many frames' sizes are read at once when a lane is over a bound.
pub const LANE_SIZES_AT_ONCE_MAX: usize = 4_096;

/// The dead letters that are kept of one domain: the newest.
pub const DEAD_LETTERS_PER_DOMAIN_MAX: u64 = 1_000;

/// And for how long.
pub const DEAD_LETTERS_KEPT: Duration = Duration::from_secs(90 * 24 * 60 * 60);

// --- Requests and their stored answers ---

/// One client request on the node, proxying included.
pub const CLIENT_REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// How far a request's issued_at may be from this node's clock, when it is not a repeat of a stored one.
pub const REQUEST_TIME_WINDOW: Duration = Duration::from_secs(5 * 60);

/// How long stored answers are kept: longer than [`REQUEST_TIME_WINDOW`] and than any client retries.
pub const ANSWERS_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

/// How many expired answers are forgotten in one transaction.
pub const FORGET_AT_ONCE_MAX: u64 = 10_000;

/// How often a node forgets what has expired.
pub const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(10 * 60);

// --- The database ---

/// How long a node that starts waits for whoever still holds its data directory.
pub const DATA_LOCK_WAIT: Duration = Duration::from_secs(1);

/// The write jobs that may wait for the writer before submitters wait too.
pub const WRITER_QUEUE_MAX: usize = 4_096;

/// The most write jobs in one transaction.
pub const WRITER_BATCH_MAX: usize = 256;

/// The connections on which a database is read.
pub const DATABASE_READERS: u32 = 4;

// --- Peers ---

/// Peer connections: the first retry after a failure comes after about this long.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(1);

/// Peer connections: no retry waits longer than this.
pub const BACKOFF_MAX: Duration = Duration::from_secs(5 * 60);

/// One connection attempt to one address, handshake and `hello` included.
pub const DIAL_ADDRESS_TIMEOUT: Duration = Duration::from_secs(4);

/// One whole dial sequence to a peer: discovery, every target, every address.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// One request to a peer on a connection that is up.
pub const PEER_REQUEST_TIMEOUT: Duration = Duration::from_secs(8);

/// The largest `hello`, in octets.
pub const HELLO_BYTES_MAX: usize = 4 * 1024;

/// How long either side of a new peer connection waits for the other's `hello`.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(4);

/// Dialling a peer: while an address is silent, the next one is tried beside it after this long (RFC 8305 §5).
pub const DIAL_STAGGER: Duration = Duration::from_millis(250);

/// Dialling a peer: while the targets of one priority are silent, those of the next are tried beside them after this long. Longer
/// than [`DIAL_STAGGER`], so that a target that is merely slow is preferred to one that is meant for its absence.
pub const DIAL_PRIORITY_STAGGER: Duration = Duration::from_millis(1_000);

/// The longest time that `[dns]` or `[dial]` may set, in seconds: a year.
pub const CONFIGURED_SECONDS_MAX: u64 = 365 * 24 * 60 * 60;

/// Dialling: attempts at one address, or one IPv6 /64, that have found no peer, before it is left alone.
pub const DIAL_BUDGET: u32 = 32;

/// Dialling: after so long, one attempt more.
pub const DIAL_BUDGET_REFILL: Duration = Duration::from_secs(1);

/// Dialling: the addresses of which that is known at once.
pub const DIAL_BUDGETS_MAX: usize = 4_096;

/// Peer connections: how far, in percent, a back-off may be from its nominal length, either way.
pub const BACKOFF_JITTER_PERCENT: u32 = 20;

/// Peer connections: contact from a peer cuts our back-off short at most this often. Without it two nodes that refuse each
/// other's `hello` would call each other in a loop.
pub const INBOUND_PROBE_INTERVAL: Duration = Duration::from_secs(2);

/// Dial sequences at once to peers that were reached before, or have reached us; as many more to others. More of either wait their
/// turn, so that domains that somebody made up keep nobody from those that are there.
pub const DIALS_AT_ONCE_MAX: usize = 128;

/// How long a peer that went on although it was told to wait is refused: no stream of its is answered and no connection taken.
pub const PEER_REFUSED_FOR: Duration = Duration::from_secs(60);

/// What a peer with too many streams at once is told to wait.
pub const PEER_STREAMS_RETRY_AFTER: Duration = Duration::from_secs(1);

/// The most peers that an operator can have said something of at run time.
pub const PEER_OVERRIDES_MAX: usize = 65_536;

/// A connection that is replaced after a flush is closed when its last request is answered, or after this long.
pub const REPLACED_CONNECTION_KEPT: Duration = CLIENT_REQUEST_TIMEOUT;

/// The peers remembered at once; one that is neither connected nor waited for is forgotten first.
pub const PEERS_MAX: usize = 4_096;

/// A peer connection that is lost sooner than this, without one answer, counts as a failed attempt.
pub const CONNECTION_STABLE_AFTER: Duration = Duration::from_secs(5);

// --- Diagnosis ---

/// Diagnosis: the size of the packet that knocks, in octets: the smallest to which a QUIC server answers (RFC 9000 §14.1).
pub const KNOCK_BYTES: usize = 1_200;

/// Diagnosis: how often it knocks at a silent address.
pub const KNOCK_INTERVAL: Duration = Duration::from_millis(400);

/// Diagnosis: how long a machine that is silent to UDP has to show that it is there.
pub const KNOCK_TCP_TIMEOUT: Duration = Duration::from_secs(2);

/// Diagnosis: one address, from the knock to `hello`.
pub const DIAGNOSIS_ADDRESS_TIMEOUT: Duration = DIAL_ADDRESS_TIMEOUT;

/// Diagnosis: how long the peer has to connect back and tell (X10): longer than it takes it to find that nobody answers.
pub const PROBE_BACK_TIMEOUT: Duration = Duration::from_secs(20);

/// The largest answer to `probe_back`, in octets.
pub const PROBE_REPORT_BYTES_MAX: usize = 16 * 1024;

/// Diagnosis: how many of a peer's versions are shown.
pub const VERSIONS_SHOWN_MAX: usize = 16;

/// The longest text of one address in a report, in characters: an IPv6 address with its scope and port.
pub const ADDRESS_TEXT_MAX: usize = 64;

/// `probe_back` on behalf of one peer: so many at once, after a rest.
pub const PROBE_BACK_BURST: u32 = 4;

/// And in the long run one in this time.
pub const PROBE_BACK_INTERVAL: Duration = Duration::from_secs(15);

/// `probe_back`: on behalf of all peers together, so many at once.
pub const PROBES_AT_ONCE_MAX: usize = 4;

/// The peers whose `probe_back` requests are counted at once.
pub const PROBE_KEYS_MAX: usize = 4_096;

/// From which difference of their clocks on both nodes warn of it. A request may be five minutes off ([`REQUEST_TIME_WINDOW`]).
pub const CLOCK_DIFFERENCE_WARN: Duration = Duration::from_secs(30);

/// The peers whose clocks are remembered to be off.
pub const CLOCKS_REMEMBERED_MAX: usize = 4_096;

/// How often the log says at most that somebody came with another protocol than the port speaks.
pub const OTHER_PROTOCOL_LOG_INTERVAL: Duration = Duration::from_secs(60);

// --- Discovery ---

/// One DNS question.
pub const DNS_TIMEOUT: Duration = Duration::from_secs(3);

/// The most SRV records used of one answer, unless `[dns]` says otherwise.
pub const SRV_RECORDS_MAX: usize = 8;

/// The most addresses tried per SRV target, unless `[dns]` says otherwise.
pub const TARGET_ADDRESSES_MAX: usize = 4;

/// The most addresses that `[dns]` can allow for one dial sequence, targets times addresses: so many packets a hostile domain can
/// make this node send wherever it likes. It is also the most that can be written down for one peer.
pub const DIAL_ADDRESSES_MAX: usize = 64;

/// Answers of DNS are kept for their TTL, but at least for this long, unless `[dns]` says otherwise: a TTL of 0 would ask again
/// with every dial.
pub const DNS_TTL_MIN: Duration = Duration::from_secs(1);

/// And at most for this long, unless `[dns]` says otherwise: what a slip of a day costs is not a day.
pub const DNS_TTL_MAX: Duration = Duration::from_secs(60 * 60);

/// How long after its TTL an answer serves while the name servers fail or are silent, unless `[dns]` says otherwise (RFC 8767 §5
/// suggests one to three days).
pub const DNS_STALE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How long "this name does not exist" counts at most, whatever the zone says (RFC 2308 §5 lets it be hours).
pub const DNS_NO_SUCH_NAME_KEPT_MAX: Duration = Duration::from_secs(5 * 60);

/// How long "this name has no such records" counts at most: somebody has begun to set the domain up.
pub const DNS_NO_RECORDS_KEPT_MAX: Duration = Duration::from_secs(60);

/// How long a question that got no answer is not asked again: it costs [`DNS_TIMEOUT`] each time.
pub const DNS_SILENCE_KEPT: Duration = Duration::from_secs(5);

/// How long a question that a name server failed to answer is not asked again (RFC 9520 §3.2 wants at least a second).
pub const DNS_FAILURE_KEPT: Duration = Duration::from_secs(2);

/// When a host's addresses of one family are there, how long those of the other are waited for.
pub const DNS_OTHER_FAMILY_WAIT: Duration = Duration::from_millis(500);

/// How many times a DNS question is repeated within [`DNS_TIMEOUT`].
pub const DNS_ATTEMPTS: usize = 2;

/// The most aliases (CNAME) between a domain's SRV name and its records: more are a mistake or a loop.
pub const DNS_ALIASES_MAX: usize = 4;

/// The most answers to distinct questions that the resolver remembers, of each type.
pub const DNS_CACHE_ENTRIES_MAX: usize = 4_096;

// --- QUIC and UDP ---

/// QUIC: an idle connection ends after this.
pub const CONNECTION_IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// QUIC: how often a node says on an otherwise idle connection to a peer that it is there, and so at most how long it waits for
/// the answer of a peer that has lost the connection in a restart.
pub const PEER_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// QUIC: the same for a client and its node. Nodes have many clients, and phones have batteries.
pub const CLIENT_KEEP_ALIVE: Duration = Duration::from_secs(2);

/// QUIC: requests at once on one peer connection.
pub const PEER_STREAMS_MAX: u32 = 256;

/// QUIC: requests at once on one client connection, subscriptions included.
pub const CLIENT_STREAMS_MAX: u32 = 32;

/// QUIC: streams at once on a connection of which it is not known whose it is, and of a stranger.
pub const UNSETTLED_STREAMS_MAX: u32 = 4;

/// QUIC: octets in flight per stream: a part of [`CONNECTION_WINDOW_BYTES`], so that one stream that is not read blocks no others.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// QUIC: octets in flight on a connection with a peer, each way.
pub const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;

/// QUIC: octets in flight on an accepted connection, each way, of which it is not known whose it is, and of a stranger.
pub const UNSETTLED_WINDOW_BYTES: u32 = 32 * 1024;

/// QUIC: the same for a client's connection, and for a peer's when [`WIDE_CONNECTIONS_MAX`] have more.
pub const SETTLED_WINDOW_BYTES: u32 = 128 * 1024;

/// QUIC: how many accepted connections of a port have [`CONNECTION_WINDOW_BYTES`].
pub const WIDE_CONNECTIONS_MAX: usize = 128;

/// The connections that one peer has made at once. It needs one; others may be left of before a restart.
pub const PEER_CONNECTIONS_MAX: usize = 8;

/// The connections of one user's clients at once.
pub const USER_CONNECTIONS_MAX: usize = 64;

/// The connections without a certificate at once, on one port, from one IPv4 address or IPv6 /64.
pub const STRANGER_CONNECTIONS_PER_ADDRESS_MAX: usize = 32;

/// And from all.
pub const STRANGERS_MAX: usize = 512;

/// One holder (a peer's domain, a user, a stranger's machine) has at most one part in so many of the memory for frames.
pub const HELD_HOLDER_PART: usize = 4;

/// The least that a frame counts for, in octets: its stream and its task need memory, too.
pub const HELD_FRAME_BYTES_MIN: usize = 4 * 1024;

/// How long a request that has begun to arrive waits for memory before its sender is told to try again.
pub const HELD_WAIT_MAX: Duration = Duration::from_secs(5);

/// How often the log says that connections were refused for want of places.
pub const REFUSALS_TOLD_INTERVAL: Duration = Duration::from_secs(60);

/// The UDP socket buffers asked of the system, in octets each way.
pub const UDP_BUFFER_BYTES: usize = 2 * 1024 * 1024;

/// QUIC: one inbound handshake, from the first packet to the authenticated connection.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// QUIC: inbound connections that wait to be looked at, on one endpoint; more are refused.
pub const INCOMING_PENDING_MAX: usize = 1_024;

/// QUIC: octets kept for one inbound connection that has not been looked at.
pub const INCOMING_BUFFER_BYTES: u64 = 16 * 1024;

/// QUIC: octets kept for all inbound connections that have not been looked at.
pub const INCOMING_BUFFERS_BYTES: u64 = 4 * 1024 * 1024;

/// QUIC: handshake octets that may arrive out of order.
pub const CRYPTO_BUFFER_BYTES: usize = 16 * 1024;

/// QUIC: how long a Retry token proves an address.
pub const RETRY_TOKEN_LIFETIME: Duration = Duration::from_secs(15);

/// QUIC: at most one stateless reset leaves an endpoint in this time (RFC 9000 §21.11).
pub const STATELESS_RESET_INTERVAL: Duration = Duration::from_millis(5);

/// How often a node looks whether its TLS files have changed. A change is taken once it was seen twice alike, so that a file that
/// is being written is not read.
pub const TLS_FILES_INTERVAL: Duration = Duration::from_secs(1);

/// How often a node looks at the days that certificates have left, and tries TLS files again that it could not use.
pub const TLS_EXPIRY_INTERVAL: Duration = Duration::from_secs(60);

/// How often the log repeats that a certificate or revocation list will expire.
pub const TLS_WARNING_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

/// From how many days left on the log warns of a certificate, unless the configuration says otherwise.
pub const TLS_WARN_DAYS: u32 = 14;

/// How long a revocation list made here is good for.
pub const CRL_LIFETIME: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long a client connection without a certificate may last: `info` and `enrol` are quick.
pub const STRANGER_CONNECTION_MAX: Duration = Duration::from_secs(30);

// --- The admin interface ---

/// The admin interface: connections at once on the socket, and as many on TCP. More wait their turn.
pub const ADMIN_CONNECTIONS_MAX: usize = 16;

/// The admin interface: how long a request's head, and then its body, may take to arrive.
pub const ADMIN_READ_TIMEOUT: Duration = Duration::from_secs(5);

/// The admin interface: how long one connection, which carries one request, may last. Longer than anything that is asked there
/// takes, a look at another domain included.
pub const ADMIN_CONNECTION_MAX: Duration = Duration::from_secs(60);

/// The admin interface: the largest head of a request, in octets.
pub const ADMIN_HEAD_BYTES_MAX: usize = 16 * 1024;

/// The admin interface: the most header fields of a request.
pub const ADMIN_HEADERS_MAX: usize = 32;

/// The admin interface: the largest body of a request, in octets.
pub const ADMIN_BODY_BYTES_MAX: usize = 64 * 1024;

/// The admin interface: the most rows of an answer, lanes and dead letters above all.
pub const ADMIN_ROWS_MAX: usize = 10_000;

/// The largest answer that an operator's command takes from the admin interface, in octets.
pub const ADMIN_ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The peers that have metrics of their own; the others are summed up.
pub const METRICS_PEERS_MAX: usize = 256;

/// How long a write that only shows whether the disk can be written may take.
pub const TRY_WRITING_TIMEOUT: Duration = Duration::from_secs(5);

/// How often what all queues hold is counted anew for metrics: it costs a look at each queue.
pub const QUEUE_TOTALS_INTERVAL: Duration = Duration::from_secs(60);

// --- Stopping ---

/// How long a node waits for work in progress when it is told to stop.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

// --- The client ---

/// Pushes that may wait to be taken, each of up to [`FETCH_BYTES_MAX`]; more wait in QUIC's window.
pub const CLIENT_PUSHES_MAX: usize = 8;

/// A node that has not sent a single packet for this long after a request was written is taken for dead. QUIC itself would
/// wait for the idle time-out.
pub const CLIENT_SILENCE_MAX: Duration = Duration::from_secs(3);

/// How often a Commit is made anew because another one came first, and a message because the group moved on.
pub const CLIENT_ATTEMPTS_MAX: u32 = 64;

/// How many history lines stay in a client's state before the history's file is synced and they leave it. A sync a message would double its cost.
pub const CLIENT_UNSYNCED_LINES_MAX: usize = 128;

/// How far back from the history's end the last whole line is looked for, in octets: several times the longest line.
pub const CLIENT_HISTORY_TAIL_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// How long one round of receiving works on what other operations left undone. What remains is for the next round.
pub const CLIENT_CHORES_TIMEOUT: Duration = Duration::from_secs(5);

/// How often a listener looks after what waits, when nothing comes.
pub const CLIENT_CHORES_INTERVAL: Duration = Duration::from_secs(15);

/// How often a listener looks after what waits, while something does.
pub const CLIENT_BACKLOG_INTERVAL: Duration = Duration::from_millis(500);

/// How long after the last push what it brought is surely acknowledged.
pub const CLIENT_ACKNOWLEDGE_INTERVAL: Duration = Duration::from_secs(1);

/// The waits between tries to subscribe again. A node that comes back is found within the longest of them.
pub const CLIENT_RESUBSCRIBE_FIRST: Duration = Duration::from_millis(200);

/// See [`CLIENT_RESUBSCRIBE_FIRST`].
pub const CLIENT_RESUBSCRIBE_MAX: Duration = Duration::from_secs(2);

/// Past epochs whose messages can still be read: one more than the hub accepts, for what is on its way.
pub const CLIENT_PAST_EPOCHS_MAX: usize = 5;

/// How many later messages of the same sender may overtake one that can still be read. A client may send as many at once as its
/// node takes requests, and repeats one of them for as long as the hub is slow.
pub const CLIENT_OUT_OF_ORDER_MAX: u32 = 512;

/// How many messages of one sender may be missing at once.
pub const CLIENT_MISSING_MAX: u32 = 10_000;

/// The most events that wait to be handed out; the history keeps messages that fall out here.
pub const CLIENT_INBOX_EVENTS_MAX: usize = 65_536;

/// The wait before a client's second try of a request; it doubles from try to try.
pub const CLIENT_WAIT_FIRST: Duration = Duration::from_millis(200);

/// No wait between two tries of a request is longer, unless the node asks for it.
pub const CLIENT_WAIT_MAX: Duration = Duration::from_secs(2);

/// One try, proxying included: a little longer than the node itself allows.
pub const CLIENT_TRY_TIMEOUT: Duration = Duration::from_secs(CLIENT_REQUEST_TIMEOUT.as_secs() + 2);

/// The most entries of one group that wait; more are passed over.
pub const CLIENT_BACKLOG_ENTRIES_MAX: usize = 20_000;

/// How often KeyPackages are counted without a reason.
pub const CLIENT_KEY_PACKAGES_COUNT_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// How long a client's operation tries, unless told otherwise.
pub const CLIENT_REQUEST_DEADLINE: Duration = Duration::from_secs(60);

/// How long a client waits for its good-bye to reach the node.
pub const CLIENT_CLOSE_TIMEOUT: Duration = Duration::from_millis(500);

/// The longest wait that a client lets its node ask for.
pub const CLIENT_RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

/// The waits between looks into the queue for a Commit that the hub says is on its way: the first, and the longest.
pub const CLIENT_EPOCH_WAIT_FIRST: Duration = Duration::from_millis(5);

/// See [`CLIENT_EPOCH_WAIT_FIRST`].
pub const CLIENT_EPOCH_WAIT_MAX: Duration = Duration::from_millis(500);

/// How often a client looks whether another of its operations is done with a Commit.
pub const CLIENT_COMMIT_BUSY_INTERVAL: Duration = Duration::from_millis(50);

/// How long a client waits before it commits what is pending, for each member of the group: all of them wait, each a random part
/// of it.
pub const CLIENT_COVER_JITTER_PER_MEMBER: Duration = Duration::from_millis(200);

/// The longest such wait.
pub const CLIENT_COVER_JITTER_MAX: Duration = Duration::from_secs(3);

/// In how many groups at once a client commits what is pending.
pub const CLIENT_COVERS_AT_ONCE_MAX: usize = 8;

/// How old the keys of a client's leaf get before it renews them.
pub const CLIENT_LEAF_AGE_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How long before a KeyPackage of a client expires it publishes others.
pub const CLIENT_KEY_PACKAGE_REMAINING_MIN: Duration = Duration::from_secs(28 * 24 * 60 * 60);

/// How long a client keeps the private keys of a KeyPackage that has expired: a Welcome may be on its way.
pub const CLIENT_EXPIRED_KEY_PACKAGES_KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// How long a client that looks for its user's groups tries each hub, and each group.
pub const CLIENT_REJOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a client asks for the tree that a Welcome needs before it gives the invitation up.
pub const CLIENT_WELCOME_WAIT_MAX: Duration = Duration::from_secs(7 * 24 * 60 * 60);
