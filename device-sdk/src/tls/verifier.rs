//! The proof in the handshake: a chain that is good, and a signature over the handshake with the key in it.

use super::certificate::{self, CertificateError, Now};
use embedded_tls::{Aes128GcmSha256, CertificateEntryRef, CertificateRef, CertificateVerifyRef};
use embedded_tls::{Sha256, SignatureScheme, TlsError, TlsVerifier};
use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use sha2::Digest;

/// A point of P-256, uncompressed.
const KEY_BYTES: usize = 65;
/// RFC 8446, section 4.4.3.
const PADDING: [u8; 64] = [0x20; 64];
const CONTEXT: &[u8; 34] = b"TLS 1.3, server CertificateVerify\0";

/// What was shown so far.
enum Shown {
    Nothing,
    Certificate { key: [u8; KEY_BYTES], transcript: Sha256 },
    Proof,
    Wrong(CertificateError),
}

pub struct Verifier<'v> {
    authorities: &'v [u8],
    name: &'v str,
    now: Now,
    shown: Shown,
}

impl<'v> Verifier<'v> {
    pub fn new(authorities: &'v [u8], name: &'v str, now: Now) -> Self {
        Verifier { authorities, name, now, shown: Shown::Nothing }
    }

    /// Whether the other side is who it should be. An error without a reason: it has shown nothing, or not all.
    pub fn outcome(&self) -> Result<(), Option<CertificateError>> {
        match self.shown {
            Shown::Proof => Ok(()),
            Shown::Wrong(why) => Err(Some(why)),
            Shown::Nothing | Shown::Certificate { .. } => Err(None),
        }
    }

    fn key(&self, shown: &CertificateRef<'_>) -> Result<[u8; KEY_BYTES], CertificateError> {
        let mut chain: [&[u8]; 4] = [&[]; 4];
        let mut length = 0;
        for (place, entry) in chain.iter_mut().zip(&shown.entries) {
            let CertificateEntryRef::X509(bytes) = entry else { return Err(CertificateError::Malformed) };
            *place = bytes;
            length += 1;
        }
        let chain = chain.get(..length).unwrap_or_default();
        let key = certificate::verify(chain, self.authorities, self.name, self.now)?;
        key.try_into().map_err(|_| CertificateError::Algorithm)
    }

    fn wrong(&mut self, why: CertificateError) -> TlsError {
        self.shown = Shown::Wrong(why);
        TlsError::InvalidCertificate
    }
}

impl TlsVerifier<Aes128GcmSha256> for Verifier<'_> {
    fn set_hostname_verification(&mut self, _name: &str) -> Result<(), TlsError> {
        Ok(()) // It has the name already.
    }

    fn verify_certificate(&mut self, transcript: &Sha256, shown: CertificateRef<'_>) -> Result<(), TlsError> {
        if !matches!(self.shown, Shown::Nothing) {
            return Err(self.wrong(CertificateError::Malformed));
        }
        let key = self.key(&shown).map_err(|why| self.wrong(why))?;
        self.shown = Shown::Certificate { key, transcript: transcript.clone() };
        Ok(())
    }

    fn verify_signature(&mut self, proof: CertificateVerifyRef<'_>) -> Result<(), TlsError> {
        let shown = core::mem::replace(&mut self.shown, Shown::Wrong(CertificateError::Signature));
        let Shown::Certificate { key, transcript } = shown else { return Err(TlsError::InvalidSignature) };
        let SignatureScheme::EcdsaSecp256r1Sha256 = proof.signature_scheme else {
            return Err(self.wrong(CertificateError::Algorithm));
        };
        let mut message = [0; 64 + 34 + 32];
        let parts = PADDING.iter().chain(CONTEXT).copied().chain(transcript.finalize());
        message.iter_mut().zip(parts).for_each(|(place, byte)| *place = byte);
        let key = VerifyingKey::from_sec1_bytes(&key).map_err(|_| TlsError::InvalidSignature)?;
        let signature = Signature::from_der(proof.signature).map_err(|_| TlsError::InvalidSignature)?;
        key.verify(&message, &signature).map_err(|_| TlsError::InvalidSignature)?;
        self.shown = Shown::Proof;
        Ok(())
    }
}
