//! The settings of tokens: which ones are accepted, and which claims are read.

use std::{path::Path, time::Duration};

use super::{JwksSource, OptionalPath, OptionalTenant, Secret};
#[cfg(feature = "cli")]
use super::{
    headings::JWT,
    parse::{parse_delay, parse_leeway, parse_optional_tenant, text},
};

/// Which tokens are accepted.
#[derive(Debug, Clone)]
#[cfg_attr(feature = "cli", derive(clap::Args))]
pub struct JwtConfig {
    /// Secret of HS256, HS384 and HS512 tokens
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "SECRET", hide_env_values = true,
        help_heading = JWT))]
    pub jwt_secret: Option<Secret>,
    /// Public keys (RSA, EC P-256 or P-384, Ed25519) that verify tokens, as PEM blocks
    // Never printed: somebody may paste a private key by mistake.
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "PEM", hide_env_values = true,
        help_heading = JWT))]
    pub jwt_public_key: Option<Secret>,
    /// File with such PEM blocks
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "PATH", help_heading = JWT))]
    pub jwt_public_key_file: Option<OptionalPath>,
    /// JSON Web Key Set: a file, or an https:// URL (http:// on this machine only)
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "PATH|URL", default_value = "",
        hide_default_value = true, hide_env_values = true, help_heading = JWT))]
    pub jwt_jwks: JwksSource,
    /// How often the key set is read again
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "DURATION",
        default_value = text(Self::default().jwt_jwks_refresh), value_parser = parse_delay,
        help_heading = JWT))]
    pub jwt_jwks_refresh: Duration,
    /// CA certificates (PEM) for the https server of the key set; without it, the public CAs
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "PATH", help_heading = JWT))]
    pub jwt_jwks_ca_file: Option<OptionalPath>,
    /// Refuse tokens without expiry (exp)
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "BOOL",
        default_value_t = Self::default().jwt_require_exp, action = clap::ArgAction::Set,
        value_parser = clap::builder::BoolishValueParser::new(), help_heading = JWT))]
    pub jwt_require_exp: bool,
    /// Tolerated clock difference to the issuer, in whole seconds
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "DURATION",
        default_value = text(Self::default().jwt_leeway), value_parser = parse_leeway,
        help_heading = JWT))]
    pub jwt_leeway: Duration,
    /// Also take tokens from the query parameter `token`, which proxies log
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "BOOL",
        default_value_t = Self::default().jwt_allow_query, action = clap::ArgAction::Set,
        value_parser = clap::builder::BoolishValueParser::new(), help_heading = JWT))]
    pub jwt_allow_query: bool,
    /// Required issuer (iss); not checked when absent
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "ISSUER", help_heading = JWT))]
    pub jwt_issuer: Option<String>,
    /// Required audience (aud); not checked when absent
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "AUDIENCE", help_heading = JWT))]
    pub jwt_audience: Option<String>,
    /// Claim that holds the user id [default: userId, else sub]
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "CLAIM", help_heading = JWT))]
    pub jwt_user_id_claim: Option<String>,
    /// Claim that holds the tenant id
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "CLAIM",
        default_value_t = Self::default().jwt_tenant_id_claim,
        value_parser = clap::builder::NonEmptyStringValueParser::new(), help_heading = JWT))]
    pub jwt_tenant_id_claim: String,
    /// Tenant of tokens without that claim; empty for none
    #[cfg_attr(feature = "cli", arg(long, env, value_name = "TENANT_ID", default_value = "",
        hide_default_value = true, value_parser = parse_optional_tenant, help_heading = JWT))]
    pub jwt_default_tenant_id: OptionalTenant,
}

impl Default for JwtConfig {
    /// The documented defaults, without a key; the environment is not read.
    fn default() -> Self {
        Self {
            jwt_secret: None,
            jwt_public_key: None,
            jwt_public_key_file: None,
            jwt_jwks: JwksSource::Unset,
            jwt_jwks_refresh: Duration::from_secs(5 * 60),
            jwt_jwks_ca_file: None,
            jwt_require_exp: true,
            jwt_leeway: Duration::from_secs(5),
            jwt_allow_query: false,
            jwt_issuer: None,
            jwt_audience: None,
            jwt_user_id_claim: None,
            jwt_tenant_id_claim: "tenantId".to_owned(),
            jwt_default_tenant_id: None,
        }
    }
}

impl JwtConfig {
    /// The file of public keys.
    pub fn public_key_file(&self) -> Option<&Path> {
        self.jwt_public_key_file.as_ref()?.path()
    }

    /// The file of CA certificates for the server of the key set.
    pub fn jwks_ca_file(&self) -> Option<&Path> {
        self.jwt_jwks_ca_file.as_ref()?.path()
    }

    /// The required issuer. An empty one counts as unset (`JWT_ISSUER=`).
    pub fn issuer(&self) -> Option<&str> {
        given(self.jwt_issuer.as_deref())
    }

    /// The required audience. An empty one counts as unset.
    pub fn audience(&self) -> Option<&str> {
        given(self.jwt_audience.as_deref())
    }

    /// The claim that holds the user id, if one is configured.
    pub fn user_id_claim(&self) -> Option<&str> {
        given(self.jwt_user_id_claim.as_deref())
    }
}

fn given(setting: Option<&str>) -> Option<&str> {
    setting.filter(|setting| !setting.is_empty())
}
