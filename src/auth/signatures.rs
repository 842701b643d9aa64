//! How the signatures of tokens are verified: ring verifies those of RSA and of the NIST
//! curves, in a third to a tenth of the time; `jsonwebtoken` verifies all others itself.
//!
//! Invariant: exactly those signatures are accepted that `jsonwebtoken` accepts.

use std::sync::LazyLock;

use jsonwebtoken::{
    Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind,
    crypto::{CryptoProvider, JwtVerifier, rust_crypto},
    errors::Result,
    signature::{Error, Verifier},
};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, EcdsaVerificationAlgorithm,
    RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters,
    RsaPublicKeyComponents, UnparsedPublicKey,
};

use Algorithm::{ES256, ES384, PS256, PS384, PS512, RS256, RS384, RS512};

/// The first byte of a curve's point that is not compressed (SEC 1, §2.3.3). ring reads
/// no other points.
const UNCOMPRESSED: u8 = 4;

static PROVIDER: LazyLock<CryptoProvider> = LazyLock::new(|| CryptoProvider {
    verifier_factory: verifier,
    ..rust_crypto::DEFAULT_PROVIDER.clone()
});

/// Has tokens verified by this module from now on. If another part of the process has
/// installed a provider before, that one stays.
pub fn install() {
    let _ = PROVIDER.install_default();
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As the library calls it.
fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    // Checks the key.
    let other = (rust_crypto::DEFAULT_PROVIDER.verifier_factory)(algorithm, key)?;
    let is_point = || matches!(key.try_get_as_bytes(), Ok([UNCOMPRESSED, ..]));
    match key.family() {
        AlgorithmFamily::Rsa => {}
        AlgorithmFamily::Ec if is_point() => {}
        _ => return Ok(other),
    }
    let (algorithm, key) = (*algorithm, key.clone());
    Ok(Box::new(ByRing { algorithm, key }))
}

struct ByRing {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Verifier<Vec<u8>> for ByRing {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        let verified = match (self.algorithm, self.key.kind()) {
            (ES256, DecodingKeyKind::SecretOrDer(point)) => {
                of_curve(&ECDSA_P256_SHA256_FIXED, point, message, signature)
            }
            (ES384, DecodingKeyKind::SecretOrDer(point)) => {
                of_curve(&ECDSA_P384_SHA384_FIXED, point, message, signature)
            }
            (algorithm, kind) => rsa(algorithm).and_then(|parameters| match kind {
                DecodingKeyKind::SecretOrDer(der) => UnparsedPublicKey::new(parameters, der)
                    .verify(message, signature)
                    .ok(),
                DecodingKeyKind::RsaModulusExponent { n, e } => {
                    let key = RsaPublicKeyComponents {
                        n: without_leading_zeros(n),
                        e: without_leading_zeros(e),
                    };
                    key.verify(parameters, message, signature).ok()
                }
            }),
        };
        verified.ok_or_else(Error::new)
    }
}

impl JwtVerifier for ByRing {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

fn of_curve(
    algorithm: &'static EcdsaVerificationAlgorithm,
    point: &[u8],
    message: &[u8],
    signature: &[u8],
) -> Option<()> {
    let key = UnparsedPublicKey::new(algorithm, point);
    key.verify(message, signature).ok()
}

fn rsa(algorithm: Algorithm) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        RS256 => &RSA_PKCS1_2048_8192_SHA256,
        RS384 => &RSA_PKCS1_2048_8192_SHA384,
        RS512 => &RSA_PKCS1_2048_8192_SHA512,
        PS256 => &RSA_PSS_2048_8192_SHA256,
        PS384 => &RSA_PSS_2048_8192_SHA384,
        PS512 => &RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}

/// Some issuers write leading zeros, which ring refuses.
fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}
