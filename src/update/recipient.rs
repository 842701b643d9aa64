//! Whether an update may be shown to a user: the one place where an update is checked for
//! its recipient.
//!
//! Routing keys do not decide this. They carry no tenant before Chat3 0.0.86, and since
//! ids may contain dots, one key can be read as several users'. So the ids in the body are
//! compared, after JSON's escapes are resolved. Pure.

use super::{Rejection, Text, Update};
use crate::user::User;

impl Update<'_> {
    /// Refuses an update that is not for `user`. A user without a tenant is shown the
    /// updates of every tenant's user of that id; to a user with one, an update that names
    /// none is foreign.
    ///
    /// # Errors
    /// When the update is for another user, or for another tenant's.
    pub fn check_recipient(&self, user: &User) -> Result<(), Rejection> {
        if self.user_id.as_str() != user.id.as_str() {
            return Err(Rejection::ForeignUser);
        }
        match (&user.tenant, &self.tenant_id) {
            (None, _) => Ok(()),
            (Some(expected), Some(actual)) if expected.as_str() == actual.as_str() => Ok(()),
            (Some(_), _) => Err(Rejection::ForeignTenant),
        }
    }

    /// The id of the user whom the update is for, as published.
    pub fn user_id(&self) -> &str {
        self.user_id.as_str()
    }

    /// The tenant of that user, if the body names one.
    pub fn tenant_id(&self) -> Option<&str> {
        self.tenant_id.as_ref().map(Text::as_str)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::user::{TenantId, UserId};

    fn user(id: &str, tenant: Option<&str>) -> User {
        User {
            id: UserId::parse(id).unwrap(),
            tenant: tenant.map(|tenant| TenantId::parse(tenant).unwrap()),
        }
    }

    #[test]
    fn recipients_are_compared_after_unescaping() {
        let body = r#"{"\u0075serId":"us\u0065r","tenantId":"t"}"#;
        let update = Update::decode(body.as_bytes()).unwrap();
        assert_eq!(update.check_recipient(&user("user", Some("t"))), Ok(()));
        assert_eq!(update.check_recipient(&user("user", None)), Ok(()));
        let foreign = update.check_recipient(&user("us\\u0065r", None));
        assert_eq!(foreign, Err(Rejection::ForeignUser));
        let foreign = update.check_recipient(&user("user", Some("T")));
        assert_eq!(foreign, Err(Rejection::ForeignTenant));
        let without_tenant = Update::decode(br#"{"userId":"user"}"#).unwrap();
        let foreign = without_tenant.check_recipient(&user("user", Some("t")));
        assert_eq!(foreign, Err(Rejection::ForeignTenant));
    }

    proptest! {
        /// Ids that are equal, or differ in case, length or a dot only.
        #[test]
        fn only_the_recipient_passes(
            id in "[aA.]{1,2}",
            other in "[aA.]{1,2}",
            tenant in proptest::option::of("[tT]"),
            other_tenant in proptest::option::of("[tT]"),
        ) {
            let body = match &tenant {
                Some(tenant) => json!({"userId": id, "tenantId": tenant}),
                None => json!({"userId": id}),
            };
            let body = body.to_string();
            let update = Update::decode(body.as_bytes()).unwrap();
            let checked = update.check_recipient(&user(&other, other_tenant.as_deref()));
            let expected = if id != other {
                Err(Rejection::ForeignUser)
            } else if other_tenant.is_some() && other_tenant != tenant {
                Err(Rejection::ForeignTenant)
            } else {
                Ok(())
            };
            prop_assert_eq!(checked, expected);
        }
    }
}
