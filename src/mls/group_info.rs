//! The GroupInfo that comes with a Commit (R5): OpenMLS has no getters for half of it, so it is rebuilt and compared.

use openmls::ciphersuite::signature::Signature;
use openmls::group::PublicGroup;
use openmls::messages::group_info::{GroupInfo, VerifiableGroupInfo};
use openmls::prelude::{
    ConfirmationTag, LeafNodeIndex, MlsMessageBodyIn, OpenMlsSignaturePublicKey, SignaturePublicKey, StagedCommit,
    Verifiable as _,
};
use tls_codec::Serialize as _;

use super::message::read;
use super::provider::VerifyOnly;
use crate::wire::{ErrorCode, Rejection};

pub(super) fn read_group_info(octets: &[u8]) -> Result<VerifiableGroupInfo, Rejection> {
    match read(octets, ErrorCode::InvalidGroupInfo)? {
        MlsMessageBodyIn::GroupInfo(info) => Ok(info),
        _ => Err(ErrorCode::InvalidGroupInfo.into()),
    }
}

/// Whether the GroupInfo has exactly the staged context, the Commit's confirmation tag and an external_pub, and is signed by the
/// committer's key after the Commit. `committer`: its leaf then.
pub(super) fn check_group_info(
    group: &PublicGroup,
    committer: LeafNodeIndex,
    staged: &StagedCommit,
    tag: ConfirmationTag,
    group_info: &[u8],
) -> Result<(), Rejection> {
    let refused = || Rejection::from(ErrorCode::InvalidGroupInfo);
    let info = read_group_info(group_info)?;
    let extensions = info.extensions().clone();
    if info.group_context() != staged.group_context()
        || extensions.external_pub().is_none()
        // The tree is ours to give, and would have to be verified against the context.
        || extensions.ratchet_tree().is_some()
    {
        return Err(refused());
    }
    let key: SignaturePublicKey = match staged.update_path_leaf_node() {
        Some(leaf) => leaf.signature_key().clone(),
        None => group.leaf(committer).ok_or_else(refused)?.signature_key().clone(),
    };
    let key = OpenMlsSignaturePublicKey::from_signature_key(key, group.ciphersuite().signature_algorithm());
    let octets = info.tls_serialize_detached().map_err(|_| refused())?;
    let verified = verify(info, &key).ok_or_else(refused)?;
    // Signer index and confirmation tag have no getters: rebuild the GroupInfo from what we know, and compare octets.
    let rebuilt = VerifiableGroupInfo::new(staged.group_context().clone(), extensions, tag, committer, verified);
    if rebuilt.tls_serialize_detached().map_err(|_| refused())? != octets {
        return Err(refused());
    }
    Ok(())
}

fn verify(info: VerifiableGroupInfo, key: &OpenMlsSignaturePublicKey) -> Option<Signature> {
    let info: GroupInfo = info.verify(&VerifyOnly, key).ok()?;
    Some(info.signature().clone())
}
