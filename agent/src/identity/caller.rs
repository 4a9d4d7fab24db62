//! Who may enrol, from what STS answered and nothing else (AWS-FACTS.md B.4, rules 11 and 12).

use postern_proto::names::{AccountId, Principal, UserId};

use super::Refusal;
use super::answer::Identity;

/// The IAM user that STS named, from an account that may enrol. `partition` is the attestation
/// role's.
pub(super) fn principal(
    identity: &Identity,
    accounts: &[AccountId],
    partition: &str,
) -> Result<Principal, Refusal> {
    let odd = |what: &str| Refusal::sts(format!("GetCallerIdentity answered {what}"));
    let account: AccountId = identity
        .account
        .parse()
        .map_err(|_| odd("an account that is no account number"))?;
    let (arn_partition, service, arn_account, resource) =
        split_arn(&identity.arn).ok_or_else(|| odd("an ARN that is none"))?;
    if arn_account != account.as_str() || arn_partition != partition {
        return Err(odd("an ARN of another account or partition"));
    }
    if !accounts.contains(&account) {
        return Err(Refusal::account(account.as_str()));
    }
    match (service, resource.split('/').next().unwrap_or_default()) {
        ("iam", "user") if resource.len() > "user/".len() => {}
        ("iam", "root") => return Err(Refusal::root()),
        ("sts", "federated-user") => return Err(Refusal::federated(&identity.arn)),
        ("sts", "assumed-role") => return Err(Refusal::role_session(&identity.arn)),
        _ => return Err(odd("an ARN of an unknown kind")),
    }
    let user_id: UserId = identity
        .user_id
        .parse()
        .map_err(|_| odd("a user id that is none"))?;
    if !user_id.as_str().starts_with("AIDA") {
        return Err(odd("a user id that is no user's"));
    }
    Ok(Principal {
        account,
        user_id,
        arn: identity.arn.clone(),
    })
}

/// Whether an MFA serial can belong to `caller`: an ARN must be of its account and partition; the
/// serial of a hardware token says nothing. That the device is this very user's is AWS's to
/// check, and it does: AssumeRole takes a code of the caller's own devices alone.
pub(super) fn owns_serial(caller: &Principal, partition: &str, serial: &str) -> bool {
    if !serial.contains(':') {
        return true;
    }
    split_arn(serial).is_some_and(|(arn_partition, service, account, resource)| {
        arn_partition == partition
            && service == "iam"
            && account == caller.account.as_str()
            && resource
                .strip_prefix("mfa/")
                .is_some_and(|name| !name.is_empty())
    })
}

/// Partition, service, account and resource of an ARN without a region.
fn split_arn(arn: &str) -> Option<(&str, &str, &str, &str)> {
    let mut parts = arn.splitn(6, ':');
    let mut next = || parts.next();
    match (next()?, next()?, next()?, next()?, next()?, next()?) {
        ("arn", partition, service, "", account, resource) => {
            Some((partition, service, account, resource))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_proto::enroll::RefuseCode;

    fn ask(arn: &str, user_id: &str) -> Result<Principal, Refusal> {
        let identity = Identity {
            account: "111122223333".to_owned(),
            user_id: user_id.to_owned(),
            arn: arn.to_owned(),
            request_id: "r".to_owned(),
        };
        principal(&identity, &["111122223333".parse().unwrap()], "aws")
    }

    fn code(arn: &str, user_id: &str) -> RefuseCode {
        ask(arn, user_id).unwrap_err().code
    }

    const ALICE: &str = "AIDAALICEALICEALICE1";

    #[test]
    fn an_iam_user_is_known_by_its_unique_id() {
        let alice = ask("arn:aws:iam::111122223333:user/team/alice", ALICE).unwrap();
        assert_eq!(alice.key(), "111122223333/AIDAALICEALICEALICE1");
    }

    #[test]
    fn root_and_federated_users_are_refused() {
        assert_eq!(
            code("arn:aws:iam::111122223333:root", "111122223333"),
            RefuseCode::Caller
        );
        assert_eq!(
            code(
                "arn:aws:sts::111122223333:federated-user/x",
                "111122223333:x"
            ),
            RefuseCode::Caller
        );
    }

    #[test]
    fn a_role_session_is_refused_whatever_its_name() {
        for arn in [
            "arn:aws:sts::111122223333:assumed-role/ops/alice",
            "arn:aws:sts::111122223333:assumed-role/AWSReservedSSO_Admin_0123/alice",
        ] {
            assert_eq!(code(arn, "AROAEXAMPLEEXAMPLE11:alice"), RefuseCode::Mfa);
        }
    }

    #[test]
    fn an_answer_that_contradicts_itself_is_refused() {
        for (arn, id) in [
            ("arn:aws:iam::999999999999:user/alice", ALICE),
            ("arn:aws-cn:iam::111122223333:user/alice", ALICE),
            ("arn:aws:iam:eu-west-1:111122223333:user/alice", ALICE),
            ("arn:aws:s3::111122223333:user/alice", ALICE),
            ("arn:aws:iam::111122223333:user/", ALICE),
            (
                "arn:aws:iam::111122223333:user/alice",
                "AROAEXAMPLEEXAMPLE11",
            ),
            ("arn:aws:iam::111122223333:user/alice", "alice"),
            ("alice", ALICE),
        ] {
            assert_eq!(code(arn, id), RefuseCode::Sts, "{arn} {id}");
        }
    }

    #[test]
    fn another_account_is_refused() {
        let identity = Identity {
            account: "999999999999".to_owned(),
            user_id: ALICE.to_owned(),
            arn: "arn:aws:iam::999999999999:user/alice".to_owned(),
            request_id: "r".to_owned(),
        };
        let refusal = principal(&identity, &["111122223333".parse().unwrap()], "aws");
        assert_eq!(refusal.unwrap_err().code, RefuseCode::Caller);
    }

    #[test]
    fn a_serial_of_another_account_is_not_the_callers() {
        let alice = ask("arn:aws:iam::111122223333:user/alice", ALICE).unwrap();
        assert!(owns_serial(
            &alice,
            "aws",
            "arn:aws:iam::111122223333:mfa/phone"
        ));
        assert!(owns_serial(&alice, "aws", "GAHT12345678"));
        for bad in [
            "arn:aws:iam::999999999999:mfa/alice",
            "arn:aws-cn:iam::111122223333:mfa/alice",
            "arn:aws:iam::111122223333:mfa/",
            "arn:aws:iam::111122223333:user/alice",
            "::",
        ] {
            assert!(!owns_serial(&alice, "aws", bad), "{bad}");
        }
    }
}
