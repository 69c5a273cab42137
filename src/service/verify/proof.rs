//! The proof that a presented secret is a token's.

use super::Claim;
use crate::owner::Directory;
use crate::service::{TokenService, Unavailable};
use crate::store::TokenStore;
use crate::token::access::Access;
use crate::token::digest::{Message, same};
use crate::token::{KeyId, KeyedDigest, Presented};

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Returns whether the presented secret is the token's.
    ///
    /// Makes one comparison whether or not a record was found. A record under another key than the
    /// primary costs a second digest.
    ///
    /// # Errors
    /// Unavailable if the keyring lacks the key of the token's digest, or has another key under its
    /// id.
    #[inline(always)]
    pub(super) fn is_proven(
        &self,
        claim: &Claim<'_>,
        access: Option<&Access>,
    ) -> Result<bool, Unavailable> {
        let stored =
            access.and_then(|access| Some((access.key(claim.presented.kind)?, access.digest())));
        // Errors even if the digests are equal, because another node with the right key would
        // reject the token.
        if let Some((key, _)) = stored
            && self.keyring.is_wrong(key)
        {
            return Err(Unavailable::WrongKey(key));
        }
        let under_its_key = match stored {
            Some((key, _)) if key != claim.computed.key() => {
                Some(self.digest_under(key, &claim.presented)?)
            }
            _ => None,
        };
        let computed = under_its_key.as_ref().unwrap_or(&claim.computed);
        let is_same = same(computed.words(), stored.map_or([0; 4], |(_, digest)| digest));
        Ok(bool::from(is_same) && stored.is_some())
    }

    #[cold]
    fn digest_under(
        &self,
        key: KeyId,
        presented: &Presented<'_>,
    ) -> Result<KeyedDigest, Unavailable> {
        let mut message = Message::room();
        presented.read(&mut message);
        let digest = self.keyring.digest_under(key, &message);
        digest.ok_or(Unavailable::KeyMissing(key))
    }
}
