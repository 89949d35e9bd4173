//! A store for OpenMLS that forgets every write, so that storage is excluded.

use openmls_traits::public_storage::PublicStorageProvider;
use openmls_traits::storage::{CURRENT_VERSION, traits};

pub struct NullStore;

/// Never happens.
#[derive(Debug, thiserror::Error)]
#[error("a store that does nothing cannot fail")]
pub struct Never;

type Done = Result<(), Never>;

impl PublicStorageProvider<CURRENT_VERSION> for NullStore {
    type PublicError = Never;

    fn write_tree<G: traits::GroupId<CURRENT_VERSION>, T: traits::TreeSync<CURRENT_VERSION>>(&self, _: &G, _: &T) -> Done {
        Ok(())
    }
    fn write_interim_transcript_hash<G: traits::GroupId<CURRENT_VERSION>, T: traits::InterimTranscriptHash<CURRENT_VERSION>>(
        &self,
        _: &G,
        _: &T,
    ) -> Done {
        Ok(())
    }
    fn write_context<G: traits::GroupId<CURRENT_VERSION>, T: traits::GroupContext<CURRENT_VERSION>>(&self, _: &G, _: &T) -> Done {
        Ok(())
    }
    fn write_confirmation_tag<G: traits::GroupId<CURRENT_VERSION>, T: traits::ConfirmationTag<CURRENT_VERSION>>(
        &self,
        _: &G,
        _: &T,
    ) -> Done {
        Ok(())
    }
    fn queue_proposal<
        G: traits::GroupId<CURRENT_VERSION>,
        R: traits::ProposalRef<CURRENT_VERSION>,
        P: traits::QueuedProposal<CURRENT_VERSION>,
    >(
        &self,
        _: &G,
        _: &R,
        _: &P,
    ) -> Done {
        Ok(())
    }
    fn queued_proposals<
        G: traits::GroupId<CURRENT_VERSION>,
        R: traits::ProposalRef<CURRENT_VERSION>,
        P: traits::QueuedProposal<CURRENT_VERSION>,
    >(
        &self,
        _: &G,
    ) -> Result<Vec<(R, P)>, Never> {
        Ok(Vec::new())
    }
    fn tree<G: traits::GroupId<CURRENT_VERSION>, T: traits::TreeSync<CURRENT_VERSION>>(&self, _: &G) -> Result<Option<T>, Never> {
        Ok(None)
    }
    fn group_context<G: traits::GroupId<CURRENT_VERSION>, T: traits::GroupContext<CURRENT_VERSION>>(
        &self,
        _: &G,
    ) -> Result<Option<T>, Never> {
        Ok(None)
    }
    fn interim_transcript_hash<G: traits::GroupId<CURRENT_VERSION>, T: traits::InterimTranscriptHash<CURRENT_VERSION>>(
        &self,
        _: &G,
    ) -> Result<Option<T>, Never> {
        Ok(None)
    }
    fn confirmation_tag<G: traits::GroupId<CURRENT_VERSION>, T: traits::ConfirmationTag<CURRENT_VERSION>>(
        &self,
        _: &G,
    ) -> Result<Option<T>, Never> {
        Ok(None)
    }
    fn delete_tree<G: traits::GroupId<CURRENT_VERSION>>(&self, _: &G) -> Done {
        Ok(())
    }
    fn delete_confirmation_tag<G: traits::GroupId<CURRENT_VERSION>>(&self, _: &G) -> Done {
        Ok(())
    }
    fn delete_context<G: traits::GroupId<CURRENT_VERSION>>(&self, _: &G) -> Done {
        Ok(())
    }
    fn delete_interim_transcript_hash<G: traits::GroupId<CURRENT_VERSION>>(&self, _: &G) -> Done {
        Ok(())
    }
    fn remove_proposal<G: traits::GroupId<CURRENT_VERSION>, R: traits::ProposalRef<CURRENT_VERSION>>(
        &self,
        _: &G,
        _: &R,
    ) -> Done {
        Ok(())
    }
    fn clear_proposal_queue<G: traits::GroupId<CURRENT_VERSION>, R: traits::ProposalRef<CURRENT_VERSION>>(&self, _: &G) -> Done {
        Ok(())
    }
}
