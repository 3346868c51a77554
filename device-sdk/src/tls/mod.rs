//! TLS 1.3 around any transport: the server's certificate is checked against the device's authorities, and the device
//! shows its own if the gateway asks for one. No allocation.
//!
//! The protocol is `embedded-tls`: AES-128-GCM with SHA-256, key exchange and signatures over P-256. What decides
//! whether the other side is the gateway is not left to it: the chain is verified here (its own verifier takes any
//! certificate for an authority, and the device's clock for a static), and so is that a proof was seen at all, which
//! its handshake does not insist on. Records from the other side pass a sieve first.
//!
//! Time: certificates are judged by the gateway's time once the device has heard it, and the gateway says it only over
//! a connection that was checked. Before that, by a moment that is certainly over, such as the build of the firmware:
//! what had expired by then is refused, and nothing is called not valid yet. A device that was off for years so still
//! gets to its gateway, and an old certificate whose key leaked is of use only until the device has connected once
//! since it was switched on. The price: if a gateway says a time that is years ahead, its certificate is over for the
//! device until that is switched off and on.

mod certificate;
mod credentials;
mod der;
mod records;
#[cfg(test)]
mod tests;
mod verifier;

pub use certificate::{CertificateError, Now};
pub use credentials::{Credentials, CredentialsError};
pub use embedded_tls::TlsError;
/// What randomness has to be: `random` of [`Tls::new`] is of this version.
pub use p256::elliptic_curve::rand_core;

use crate::device::Transport;
use crate::trace::info;
use core::cell::Cell;
use embedded_io_async::{ErrorType, Read, Write};
use embedded_tls::TlsVerifier;
use embedded_tls::{
    Aes128GcmSha256, Certificate, CryptoProvider, SignatureScheme, TlsConfig, TlsConnection, TlsContext,
};
use p256::ecdsa::{DerSignature, SigningKey};
use rand_core::CryptoRngCore;
use records::Records;
use verifier::Verifier;

/// How long the part of the memory should be into which records are read: the longest record of the handshake holds the
/// gateway's certificates, and what follows is short.
pub const RX_BYTES: usize = 4096;
/// And the part in which they are written: the longest holds the device's certificate.
pub const TX_BYTES: usize = 1536;

/// A transport over another one, encrypted.
pub struct Tls<'a, T, R, C> {
    inner: T,
    server_name: &'a str,
    credentials: Credentials<'a>,
    random: R,
    now: C,
    rx: &'a mut [u8],
    tx: &'a mut [u8],
    is_within_record: Cell<bool>,
}

/// Why there is no encrypted stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsFailure<E> {
    /// The transport below has none.
    Transport(E),
    /// The other side does not prove that it is the gateway.
    Certificate(CertificateError),
    /// The other side went through the handshake and never showed a certificate, or no proof of having its key.
    Unproven,
    /// Not TLS 1.3, or it refused the device: as `embedded-tls` says, in words.
    Handshake,
}

impl<'a, T, R, C: Fn() -> Now> Tls<'a, T, R, C> {
    /// Over `inner`, to the gateway that has a certificate for `server_name`: a name, or an address in digits. `random`
    /// has to be fit for keys. `rx` and `tx` are [`RX_BYTES`] and [`TX_BYTES`] long, or more. `now` is asked with each
    /// connection; for a recorder in a static it is `|| Now::from_clock(RECORDER.unix_ms(), BUILT_UNIX_S)`.
    pub fn new(
        inner: T,
        server_name: &'a str,
        credentials: Credentials<'a>,
        random: R,
        now: C,
        rx: &'a mut [u8],
        tx: &'a mut [u8],
    ) -> Self {
        Tls { inner, server_name, credentials, random, now, rx, tx, is_within_record: Cell::new(false) }
    }
}

impl<T: Transport, R: CryptoRngCore, C: Fn() -> Now> Transport for Tls<'_, T, R, C> {
    type Stream<'s>
        = TlsStream<'s, T::Stream<'s>>
    where
        Self: 's;
    type Error = TlsFailure<T::Error>;

    async fn connect(&mut self) -> Result<Self::Stream<'_>, Self::Error> {
        let stream = self.inner.connect().await.map_err(TlsFailure::Transport)?;
        self.is_within_record.set(false);
        let mut connection =
            TlsConnection::new(Records::new(stream, &self.is_within_record), &mut *self.rx, &mut *self.tx);
        let verifier = Verifier::new(self.credentials.authorities(), self.server_name, (self.now)());
        let mut provider = Provider { random: &mut self.random, credentials: &self.credentials, verifier };
        let mut config = TlsConfig::new();
        // Addresses are not sent [RFC 6066, section 3].
        if self.server_name.parse::<core::net::IpAddr>().is_err() {
            config = config.with_server_name(self.server_name);
        }
        let opened = connection.open(TlsContext::new(&config, &mut provider)).await;
        let outcome = match (opened, provider.verifier.outcome()) {
            (_, Err(Some(why))) => Err(TlsFailure::Certificate(why)),
            (Ok(()), Ok(())) => Ok(()),
            (Ok(()), Err(None)) => Err(TlsFailure::Unproven),
            (Err(error), _) => {
                info!("TLS: {:?}", error);
                Err(TlsFailure::Handshake)
            }
        };
        if let Err(TlsFailure::Certificate(why)) = &outcome {
            info!("TLS: the certificate is not taken: {:?}", why);
        }
        let () = outcome?;
        Ok(TlsStream { connection, is_within_record: &self.is_within_record, is_writing: false })
    }
}

/// What `embedded-tls` asks for.
struct Provider<'p, R> {
    random: &'p mut R,
    credentials: &'p Credentials<'p>,
    verifier: Verifier<'p>,
}

impl<R: CryptoRngCore> CryptoProvider for Provider<'_, R> {
    type CipherSuite = Aes128GcmSha256;
    type Signature = DerSignature;

    fn rng(&mut self) -> impl CryptoRngCore {
        &mut *self.random
    }

    fn verifier(&mut self) -> Result<&mut impl TlsVerifier<Aes128GcmSha256>, TlsError> {
        Ok(&mut self.verifier)
    }

    fn signer(&mut self) -> Result<(impl p256::ecdsa::signature::SignerMut<DerSignature>, SignatureScheme), TlsError> {
        let key = self.credentials.key().ok_or(TlsError::InvalidPrivateKey)?;
        let key = SigningKey::from_slice(key).map_err(|_| TlsError::InvalidPrivateKey)?;
        Ok((key, SignatureScheme::EcdsaSecp256r1Sha256))
    }

    fn client_cert(&mut self) -> Option<Certificate<impl AsRef<[u8]>>> {
        self.credentials.certificate().map(Certificate::X509)
    }
}

/// An encrypted stream.
///
/// Reading may be dropped while it waits. If that happens in the middle of a record that did not come in one piece, or
/// to a write in the middle, the stream is broken, and says so with the next call.
pub struct TlsStream<'s, S: Read + Write> {
    connection: TlsConnection<'s, Records<'s, S>, Aes128GcmSha256>,
    is_within_record: &'s Cell<bool>,
    is_writing: bool,
}

impl<S: Read + Write> TlsStream<'_, S> {
    fn check(&self) -> Result<(), TlsError> {
        if self.is_within_record.get() || self.is_writing { Err(TlsError::ConnectionClosed) } else { Ok(()) }
    }
}

impl<S: Read + Write> ErrorType for TlsStream<'_, S> {
    type Error = TlsError;
}

impl<S: Read + Write> Read for TlsStream<'_, S> {
    async fn read(&mut self, into: &mut [u8]) -> Result<usize, TlsError> {
        self.check()?;
        match self.connection.read(into).await {
            Err(TlsError::ConnectionClosed) => Ok(0),
            other => other,
        }
    }
}

impl<S: Read + Write> Write for TlsStream<'_, S> {
    async fn write(&mut self, bytes: &[u8]) -> Result<usize, TlsError> {
        self.check()?;
        self.is_writing = true;
        let written = self.connection.write(bytes).await?;
        self.is_writing = false;
        Ok(written)
    }

    async fn flush(&mut self) -> Result<(), TlsError> {
        self.check()?;
        self.is_writing = true;
        self.connection.flush().await?;
        self.is_writing = false;
        Ok(())
    }
}
