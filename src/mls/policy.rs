//! What the DS reads out of a GroupContext: itself among the external senders, who may join, and limits (S12, S7 of the draft's
//! policy). Only a GroupContextExtensions Commit changes it.

use std::collections::BTreeSet;

use openmls::prelude::{GroupContext, LeafNode};
use serde::{Deserialize, Serialize};
use tls_codec::Size as _;

use super::JOIN_POLICY_EXTENSION;
use super::external_sender::position;
use crate::base::rule::{answer, on};
use crate::wire::{ErrorCode, Rejection};

/// Who may come in by an external Commit without being of a member user: the octet of extension 0xF0C1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum JoinPolicy {
    /// Nobody; also where the extension is absent.
    #[default]
    Closed,
    /// Everybody.
    Open,
}

impl JoinPolicy {
    /// The content of the extension.
    pub fn to_octet(self) -> u8 {
        match self {
            Self::Closed => 0,
            Self::Open => 1,
        }
    }
}

/// What a GroupContext says to the DS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextFacts {
    /// Who may join.
    pub join_policy: JoinPolicy,
    /// Where the DS stands among the external_senders.
    pub external_sender_index: u32,
}

/// What the DS asks of a context, besides what OpenMLS validates.
#[derive(Clone, Copy, Debug)]
pub struct ContextRules<'a> {
    /// The DS's own encoded ExternalSender.
    pub external_sender: &'a [u8],
    /// The largest extensions, in octets.
    pub extensions_bytes_max: usize,
}

/// Reads and checks a new context. `refused`: the code for what is not allowed in it.
pub(super) fn examine_context(
    context: &GroupContext,
    rules: ContextRules<'_>,
    refused: ErrorCode,
) -> Result<ContextFacts, Rejection> {
    // DS-072: the GroupContext's extensions are within their limit.
    if on("DS-072") && context.extensions().tls_serialized_len() > rules.extensions_bytes_max {
        return Err(ErrorCode::TooLarge.into());
    }
    // DS-044 (S12): the DS stays among the external_senders.
    let external_sender_index =
        position(context, rules.external_sender).or(answer("DS-044", None, Some(0))).ok_or_else(|| Rejection::from(refused))?;
    // DS-073: a join policy is one that this version knows.
    let join_policy = match context.extensions().unknown(JOIN_POLICY_EXTENSION).map(|extension| extension.0.as_slice()) {
        None | Some([0]) => JoinPolicy::Closed,
        Some([1]) => JoinPolicy::Open,
        Some(_) => return answer("DS-073", Err(refused.into()), Err(ErrorCode::Internal.into())),
    };
    Ok(ContextFacts { join_policy, external_sender_index })
}

/// Checks that `leaves` can do what the context requires. OpenMLS compares the extension types only; a required proposal or
/// credential type that a member lacks would make every later path of that member invalid.
pub(super) fn check_required<'a>(context: &GroupContext, leaves: impl Iterator<Item = &'a LeafNode>) -> Result<(), Rejection> {
    let Some(required) = context.extensions().required_capabilities() else { return Ok(()) };
    let proposals: BTreeSet<u16> = required.proposal_types().iter().map(|kind| u16::from(*kind)).collect();
    let credentials: BTreeSet<u16> = required.credential_types().iter().map(|kind| u16::from(*kind)).collect();
    for leaf in leaves {
        let capabilities = leaf.capabilities();
        let can_propose: BTreeSet<u16> = capabilities.proposals().iter().map(|kind| u16::from(*kind)).collect();
        let can_read: BTreeSet<u16> = capabilities.credentials().iter().map(|kind| u16::from(*kind)).collect();
        let lacks_proposal = proposals.iter().any(|kind| !matches!(kind, 1..=7) && !can_propose.contains(kind));
        // DS-074 (R3): what a context requires, every leaf of the group can do.
        if on("DS-074") && (lacks_proposal || !credentials.is_subset(&can_read)) {
            return Err(ErrorCode::InvalidCommit.into());
        }
    }
    Ok(())
}
