//! The command line of `postern policy`.

use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::duration;

/// `postern policy`.
#[derive(Debug, Clone, Args)]
pub struct PolicyArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: PolicyCommand,
}

/// Verbs of `postern policy`.
#[derive(Debug, Clone, Subcommand)]
pub enum PolicyCommand {
    /// Print least-privilege IAM policies, ready for `aws iam create-policy`
    Iam(PolicyIamArgs),
    /// Ask AWS what users and roles may, and compare with those policies
    Check(PolicyCheckArgs),
}

/// What the policies are about: the same for printing and checking.
#[derive(Debug, Clone, Args)]
pub struct ShapeArgs {
    /// Tag of the targets that may be reached; several values of one key are alternatives, several
    /// keys must all fit [default: postern:target=true]
    #[arg(long = "tag", value_name = "KEY=VALUE")]
    pub tags: Vec<String>,
    /// Session document of the account's own that may be used beside AWS's; several times for several
    #[arg(long = "document", value_name = "NAME")]
    pub documents: Vec<String>,
    /// Region of the targets; several times for several [default: the profile's]
    #[arg(long = "region", value_name = "REGION")]
    pub regions: Vec<String>,
    /// How long ago the MFA code may be, 15m to 36h
    #[arg(long, value_name = "TIME", default_value = "12h", value_parser = duration)]
    pub max_age: Duration,
    /// KMS key that encrypts SSM sessions; several times for several
    #[arg(long = "kms-key", value_name = "ARN")]
    pub kms_keys: Vec<String>,
    /// Tag of the targets whose sessions the agent must record, so that SSM is shut there
    /// [default: postern:recording=agent]
    #[arg(long = "recorded-tag", value_name = "KEY=VALUE")]
    pub recorded: Vec<String>,
    /// The role that attests MFA [default: the first agent's, else postern-attestation]
    #[arg(long, value_name = "ARN")]
    pub attestation_role: Option<String>,
}

/// `postern policy iam`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Policies:\n  \
    operators       for IAM users and groups: SSM sessions on tagged targets, with MFA or not at all\n  \
    operators-role  for a role that people assume: the same without the MFA conditions, because a\n                  \
    role session carries no MFA in AWS; its trust policy is the one of `attestation`\n  \
    bastion         for the agent's own role\n  \
    attestation     trust policy: who assumes this role proved MFA (`aws iam create-role\n                  \
    --assume-role-policy-document`)\n  \
    recorded        beside the others: no SSM session where the agent must record\n  \
    checker         for whoever runs `postern policy check`\n\n\
    Examples:\n  \
    postern policy iam --for operators --account 111122223333 --tag env=staging > operators.json\n  \
    aws iam create-policy --policy-name postern-operators --policy-document file://operators.json\n\n\
    Whoever may set the tags decides who gets in: keep ec2:CreateTags and ssm:AddTagsToResource away\n\
    from operators.")]
pub struct PolicyIamArgs {
    /// Only this policy, as a document; without it all of them, as one object by name
    #[arg(long = "for", value_name = "WHOM", value_enum)]
    pub subject: Option<PolicySubject>,
    /// The AWS account [default: that of the first agent's attestation role, else of the login]
    #[arg(long, value_name = "ID")]
    pub account: Option<String>,
    /// Login user that the agent may push keys for; several times for several
    #[arg(long = "os-user", value_name = "USER", default_value = "ec2-user")]
    pub login_users: Vec<String>,
    /// Address that agents call AWS from, as STS sees it: nothing else then attests (attestation)
    #[arg(long = "source-ip", value_name = "CIDR")]
    pub sources: Vec<String>,
    /// What the policies are about.
    #[command(flatten)]
    pub shape: ShapeArgs,
}

/// Whom a policy is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PolicySubject {
    /// IAM users and groups
    Operators,
    /// A role that people assume
    OperatorsRole,
    /// The agent's own role
    Bastion,
    /// The trust policy of the attestation role
    Attestation,
    /// Everybody, where the agent must record
    Recorded,
    /// Whoever runs `postern policy check`
    Checker,
}

/// `postern policy check`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    postern policy check                         everybody who may start an SSM session\n  \
    postern policy check --user alice --user bob --tag env=staging\n\n\
    Users and roles that are named must also be able to work; of the others only what is open counts.\n\
    Exits with 0 when all holds, with 1 when something does not or cannot be told.\n\n\
    AWS is asked by simulation (iam:SimulatePrincipalPolicy): identity policies, groups, permission\n\
    boundaries and service control policies count. It does not see resource policies (a KMS key's),\n\
    resource control policies, session policies and VPC endpoint policies; what a service control\n\
    policy makes of values that were not given; and statements that name single instances other than\n\
    those of --instance. Of a role, who may assume it is read from its trust policy.")]
pub struct PolicyCheckArgs {
    /// This IAM user must be able to work; several times for several
    #[arg(long = "user", value_name = "NAME")]
    pub users: Vec<String>,
    /// This role must be able to work; several times for several
    #[arg(long = "role", value_name = "NAME")]
    pub roles: Vec<String>,
    /// Ask about this instance beside an unknown one; several times for several
    #[arg(long = "instance", value_name = "ID")]
    pub instances: Vec<String>,
    /// Value of a condition key that policies of the account read; several times for several
    #[arg(long = "context", value_name = "KEY=VALUE")]
    pub context: Vec<String>,
    /// What the policies are about.
    #[command(flatten)]
    pub shape: ShapeArgs,
}
