//! Certificates that openssl made (`testdata/`, good until 2126), and what becomes of them when they are cut, flipped
//! and passed off as something else. The handshakes are tested against the real gateway.

use super::certificate::{CertificateError, Now, verify};
use super::verifier::Verifier;
use super::{Credentials, CredentialsError};
use embedded_tls::{CertificateVerifyRef, SignatureScheme, TlsVerifier};
use std::format;
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

const CA: &[u8] = include_bytes!("testdata/ca.der");
const MIDDLE: &[u8] = include_bytes!("testdata/middle.der");
const SERVER: &[u8] = include_bytes!("testdata/server.der");
const DEVICE: &[u8] = include_bytes!("testdata/device.der");
const CA_PEM: &str = include_str!("testdata/ca.pem");
const DEVICE_PEM: &str = include_str!("testdata/device.pem");
/// 2027-01-01.
const NOW: Now = Now::At(1_798_761_600);
const NAME: &str = "gateway.example";

fn check(chain: &[&[u8]], name: &str, now: Now) -> Result<(), CertificateError> {
    verify(chain, CA, name, now).map(|key| assert_eq!(key.len(), 65))
}

/// A PEM file with the key in it; made here, as a key in a file makes scanners of secrets nervous.
fn key_pem() -> String {
    let body = "MCUCAQEEIBERERERERERERERERERERERERERERERERERERERERER";
    format!("-----BEGIN EC PRIVATE {0}-----\n{body}\n-----END EC PRIVATE {0}-----\n", "KEY")
}

#[test]
fn a_server_below_an_authority_is_known_by_its_names_and_addresses_and_by_nothing_else() {
    for name in [NAME, "GATEWAY.example", "seven.plant.example", "10.0.2.2"] {
        assert_eq!(check(&[SERVER, MIDDLE], name, NOW), Ok(()), "{name}");
    }
    for name in ["plant.example", "a.b.plant.example", ".plant.example", "server", "10.0.2.3", "::1", "example", ""] {
        assert_eq!(check(&[SERVER, MIDDLE], name, NOW), Err(CertificateError::Name), "{name}");
    }
}

#[test]
fn a_chain_has_to_be_whole_and_made_of_authorities_and_for_servers() {
    let of = |file: &[u8]| file.to_vec();
    let forged = of(include_bytes!("testdata/forged.der"));
    let (deep, deepest) = (of(include_bytes!("testdata/deep.der")), of(include_bytes!("testdata/deepest.der")));
    let constrained = of(include_bytes!("testdata/constrained.der"));
    let rsa = of(include_bytes!("testdata/rsa.der"));
    let cases: [(&[&[u8]], CertificateError); 9] = [
        (&[], CertificateError::Malformed),
        (&[SERVER], CertificateError::Issuer),
        (&[SERVER, SERVER], CertificateError::Issuer),
        (&[SERVER, CA, MIDDLE], CertificateError::Issuer),
        (&[DEVICE], CertificateError::Usage),
        // A device is no authority, whoever has signed it, and one that may have none below it has none.
        (&[&forged, DEVICE], CertificateError::Issuer),
        (&[&deepest, &deep, MIDDLE], CertificateError::Issuer),
        (&[&constrained], CertificateError::Malformed),
        (&[&rsa], CertificateError::Algorithm),
    ];
    for (at, (chain, why)) in cases.into_iter().enumerate() {
        assert_eq!(check(chain, NAME, NOW), Err(why), "case {at}");
    }
    assert_eq!(verify(&[SERVER, MIDDLE], DEVICE, NAME, NOW), Err(CertificateError::Issuer));
    assert_eq!(verify(&[SERVER, MIDDLE], &[], NAME, NOW), Err(CertificateError::Issuer));
    // The authority may be the one in the middle, or one of several.
    assert!(verify(&[SERVER], MIDDLE, NAME, NOW).is_ok());
    assert!(verify(&[SERVER, MIDDLE], &[DEVICE, CA].concat(), NAME, NOW).is_ok());
}

#[test]
fn time_is_judged_by_what_is_known_of_it() {
    let (year_2126, year_2026) = (4_950_000_000, 1_780_000_000);
    for (now, outcome) in [
        (Now::At(year_2126), Err(CertificateError::Expired)),
        (Now::After(year_2126), Err(CertificateError::Expired)),
        (Now::At(year_2026), Err(CertificateError::NotYetValid)),
        (Now::After(year_2026), Ok(())),
        (Now::After(0), Ok(())),
    ] {
        assert_eq!(check(&[SERVER, MIDDLE], NAME, now), outcome, "{now:?}");
    }
    assert_eq!(Now::from_clock(None, 7), Now::After(7));
    assert_eq!(Now::from_clock(Some(9_999), 7), Now::At(9));
}

#[test]
fn a_certificate_that_is_cut_or_flipped_anywhere_is_refused() {
    for end in 0..SERVER.len() {
        assert!(check(&[&SERVER[..end], MIDDLE], NAME, NOW).is_err(), "cut at {end}");
    }
    for at in 0..SERVER.len() {
        let mut flipped = SERVER.to_vec();
        flipped[at] ^= 1 << (at % 8);
        assert!(check(&[&flipped, MIDDLE], NAME, NOW).is_err(), "flipped at {at}");
    }
    assert!(check(&[&[SERVER, &[0]].concat(), MIDDLE], NAME, NOW).is_err());
}

#[test]
fn nobody_is_proven_who_has_shown_nothing_and_a_proof_without_a_certificate_is_none() {
    let mut verifier = Verifier::new(CA, NAME, NOW);
    assert_eq!(verifier.outcome(), Err(None));
    let proof = CertificateVerifyRef { signature_scheme: SignatureScheme::EcdsaSecp256r1Sha256, signature: &[0x30, 0] };
    assert!(verifier.verify_signature(proof).is_err());
    assert_eq!(verifier.outcome(), Err(Some(CertificateError::Signature)));
}

#[test]
fn a_file_of_credentials_is_read_in_any_order() {
    let parts = [CA_PEM, DEVICE_PEM, &key_pem()];
    for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
        let pem: String = order.iter().map(|part| parts[*part]).collect();
        let mut memory = vec![0; pem.len() * 3 / 4];
        let read = Credentials::from_pem(pem.as_bytes(), &mut memory).expect("a good file");
        assert_eq!(read.authorities(), CA);
        assert_eq!((read.certificate(), read.key()), (Some(DEVICE), Some(&[0x11; 32][..])));
    }
    let mut memory = vec![0; CA_PEM.len()];
    let read = Credentials::from_pem(CA_PEM.as_bytes(), &mut memory).expect("a device without a certificate");
    assert_eq!((read.certificate(), read.key()), (None, None));
    assert!(!format!("{read:?}").contains("17"));
}

#[test]
fn a_file_of_credentials_that_is_not_whole_is_refused() {
    let key = key_pem();
    let read = |pem: &str, bytes: usize| {
        let mut memory = vec![0; bytes];
        Credentials::from_pem(pem.as_bytes(), &mut memory).map(|_| ()).err()
    };
    let cases = [
        (String::new(), CredentialsError::NoAuthority),
        ("hello".to_string(), CredentialsError::NoAuthority),
        (DEVICE_PEM.to_string() + &key, CredentialsError::NoAuthority),
        (CA_PEM.to_string() + DEVICE_PEM, CredentialsError::Unpaired),
        (CA_PEM.to_string() + &key, CredentialsError::Unpaired),
        (CA_PEM.to_string() + &key + &key, CredentialsError::Unpaired),
        (CA_PEM.replace("CERTIFICATE", "LETTER"), CredentialsError::Pem),
        (CA_PEM.replace("END CERTIFICATE", "END LETTER"), CredentialsError::Pem),
        (CA_PEM.replace('M', "-"), CredentialsError::Pem),
        (CA_PEM.to_string() + DEVICE_PEM + &key.replace("MCUC", "MCUD"), CredentialsError::Key),
    ];
    for (at, (pem, why)) in cases.into_iter().enumerate() {
        assert_eq!(read(&pem, 4_096), Some(why), "case {at}");
    }
    assert_eq!(read(CA_PEM, 100), Some(CredentialsError::Memory));
    let whole = CA_PEM.to_string() + DEVICE_PEM + &key;
    let ends: Vec<usize> = (0..whole.len()).filter(|end| whole.is_char_boundary(*end)).collect();
    for end in ends {
        let _ = read(&whole[..end], 4_096);
    }
}
