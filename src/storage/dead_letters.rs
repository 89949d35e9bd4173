//! Table `dead_letters`: incarnations of lanes that ended before all their frames were delivered (X8). What is kept is what an
//! operator needs to know, not the messages: nobody could read them, and nothing would deliver them any more.

use std::fmt;
use std::str::FromStr;

use sqlx::Row as _;
use sqlx::sqlite::SqliteRow;

use super::lanes::{domain, incarnation, number};
use super::{Connection, Storage, Transaction, integer};
use crate::base::fault::{Context as _, Fault};
use crate::base::ids::Incarnation;
use crate::base::limits::DEAD_LETTERS_PER_DOMAIN_MAX;
use crate::base::{Domain, UnixMillis};

macro_rules! dead_reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// Why a lane's incarnation ended.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DeadReason {
            $($(#[$doc])* $name,)*
        }

        impl DeadReason {
            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name in tables and output.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

dead_reasons! {
    /// The other side refused one frame, by itself, for good.
    Refused = "refused";
    /// The other side holds other frames under these sequences, as after a restore of either.
    Conflict = "conflict";
    /// The other side waits for frames that it had acknowledged, as after its restore.
    Gap = "gap";
    /// Frames were undelivered for too long.
    TooOld = "too_old";
    /// Too many frames waited.
    TooMany = "too_many";
    /// Too many octets waited.
    TooLarge = "too_large";
}

impl fmt::Display for DeadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DeadReason {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let found = Self::ALL.iter().find(|reason| reason.name() == text);
        found.copied().ok_or_else(|| Fault::new(format!("{text} is no reason of a dead letter")))
    }
}

/// An incarnation of a lane that ended, and what was lost with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// The remote domain.
    pub domain: Domain,
    /// The group's URI.
    pub group_id: String,
    /// The incarnation that ended.
    pub incarnation: Incarnation,
    /// The first sequence that is lost; where nothing is, the one that the next frame would have had.
    pub lane_sequence: u64,
    /// How many frames are lost; 0 when as far as is known none is.
    pub frames: u64,
    /// Their octets as far as they were still here: messages and recipients.
    pub octets: u64,
    /// The epoch beside the first lost frame; where none is here, the group's.
    pub epoch: u64,
    /// The leaves that are told by a `messages_lost`.
    pub recipients: u64,
    /// SHA-256 of the first lost frame's encoded delivery, if it was here.
    pub digest: Option<[u8; 32]>,
    /// Why, for programs.
    pub reason: DeadReason,
    /// Why, for people: one line.
    pub detail: String,
    /// When.
    pub died_at: UnixMillis,
}

/// How many dead letters there are of one domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetterTotals {
    /// The remote domain.
    pub domain: Domain,
    /// The rows.
    pub letters: u64,
    /// The frames that are lost.
    pub frames: u64,
}

impl Storage {
    /// The dead letters of `domain` or of all, the newest first.
    pub async fn dead_letters(&self, of: Option<&Domain>, limit: usize) -> Result<Vec<DeadLetter>, Fault> {
        let failed = "could not read dead letters";
        let rows = sqlx::query(
            "SELECT * FROM dead_letters WHERE $1 IS NULL OR domain = $1 ORDER BY died_at_ms DESC, domain, group_id LIMIT $2",
        )
        .bind(of.map(Domain::as_str))
        .bind(integer(limit as u64))
        .fetch_all(self.readers())
        .await
        .context(failed)?;
        rows.iter().map(dead_letter).collect()
    }

    /// How many dead letters there are of each domain that has any.
    pub async fn dead_letter_totals(&self) -> Result<Vec<DeadLetterTotals>, Fault> {
        let failed = "could not count dead letters";
        let rows = sqlx::query("SELECT domain, COUNT(*) AS letters, SUM(frames) AS frames FROM dead_letters GROUP BY domain")
            .fetch_all(self.readers())
            .await
            .context(failed)?;
        let totals = rows.iter().map(|row| {
            let (letters, frames) = (number(row, "letters")?, number(row, "frames")?);
            Ok::<_, sqlx::Error>(DeadLetterTotals { domain: domain(row)?, letters, frames })
        });
        totals.collect::<Result<_, _>>().context(failed)
    }
}

fn dead_letter(row: &SqliteRow) -> Result<DeadLetter, Fault> {
    let failed = "could not read a dead letter";
    let digest: Option<Vec<u8>> = row.try_get("digest").context(failed)?;
    let reason: String = row.try_get("reason").context(failed)?;
    Ok(DeadLetter {
        domain: domain(row).context(failed)?,
        group_id: row.try_get("group_id").context(failed)?,
        incarnation: incarnation(row).context(failed)?,
        lane_sequence: number(row, "lane_sequence").context(failed)?,
        frames: number(row, "frames").context(failed)?,
        octets: number(row, "octets").context(failed)?,
        epoch: number(row, "epoch").context(failed)?,
        recipients: number(row, "recipients").context(failed)?,
        digest: digest.and_then(|digest| digest.try_into().ok()),
        reason: reason.parse()?,
        detail: row.try_get("detail").context(failed)?,
        died_at: UnixMillis(number(row, "died_at_ms").context(failed)?),
    })
}

/// Writes a dead letter; the oldest of its domain make room.
pub(super) async fn write(connection: &mut Connection, letter: &DeadLetter) -> Result<(), Fault> {
    let failed = "could not write a dead letter";
    sqlx::query(
        "INSERT INTO dead_letters (domain, died_at_ms, group_id, incarnation, lane_sequence, frames, octets, epoch, recipients, \
         digest, reason, detail) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
    )
    .bind(letter.domain.as_str())
    .bind(integer(letter.died_at.0))
    .bind(letter.group_id.as_str())
    .bind(letter.incarnation.0.as_slice())
    .bind(integer(letter.lane_sequence))
    .bind(integer(letter.frames))
    .bind(integer(letter.octets))
    .bind(integer(letter.epoch))
    .bind(integer(letter.recipients))
    .bind(letter.digest.as_ref().map(<[u8; 32]>::as_slice))
    .bind(letter.reason.name())
    .bind(letter.detail.as_str())
    .execute(&mut *connection)
    .await
    .context(failed)?;
    sqlx::query(
        "DELETE FROM dead_letters WHERE domain = $1 AND (died_at_ms, group_id, incarnation) NOT IN \
         (SELECT died_at_ms, group_id, incarnation FROM dead_letters WHERE domain = $1 \
         ORDER BY died_at_ms DESC, group_id DESC, incarnation DESC LIMIT $2)",
    )
    .bind(letter.domain.as_str())
    .bind(integer(DEAD_LETTERS_PER_DOMAIN_MAX))
    .execute(connection)
    .await
    .context(failed)?;
    Ok(())
}

/// Forgets dead letters that are older than they are kept.
pub struct ForgetDeadLetters {
    /// Those that died before this.
    pub died_before: UnixMillis,
}

impl Transaction for ForgetDeadLetters {
    const NAME: &'static str = "forget_dead_letters";
    type Answer = ();

    async fn apply(&self, connection: &mut Connection) -> Result<(), Fault> {
        sqlx::query("DELETE FROM dead_letters WHERE died_at_ms < $1")
            .bind(integer(self.died_before.0))
            .execute(connection)
            .await
            .context("could not forget old dead letters")?;
        Ok(())
    }
}
