//! The services, and how each of them talks.

/// A service of the emulated AWS, as named in a credential scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Sts,
    Iam,
    Ec2,
    InstanceConnect,
    Ssm,
    Kms,
}

/// How a service talks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// XML with a result element and metadata.
    Query {
        version: &'static str,
        namespace: &'static str,
    },
    /// XML of EC2's own shape.
    Ec2,
    /// JSON 1.1, the action in `X-Amz-Target`.
    Json { target: &'static str },
}

impl Service {
    pub(crate) const ALL: [Self; 6] = [
        Self::Sts,
        Self::Iam,
        Self::Ec2,
        Self::InstanceConnect,
        Self::Ssm,
        Self::Kms,
    ];

    /// The service of this name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|service| service.name() == name)
    }

    /// The name in credential scopes, actions and event sources.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Sts => "sts",
            Self::Iam => "iam",
            Self::Ec2 => "ec2",
            Self::InstanceConnect => "ec2-instance-connect",
            Self::Ssm => "ssm",
            Self::Kms => "kms",
        }
    }

    /// Versions, namespaces and target prefixes from the API models that botocore ships.
    pub(crate) fn protocol(self) -> Protocol {
        match self {
            Self::Sts => Protocol::Query {
                version: "2011-06-15",
                namespace: "https://sts.amazonaws.com/doc/2011-06-15/",
            },
            Self::Iam => Protocol::Query {
                version: "2010-05-08",
                namespace: "https://iam.amazonaws.com/doc/2010-05-08/",
            },
            Self::Ec2 => Protocol::Ec2,
            Self::InstanceConnect => Protocol::Json {
                target: "AWSEC2InstanceConnectService",
            },
            Self::Ssm => Protocol::Json {
                target: "AmazonSSM",
            },
            // The service's first name, still on the wire.
            Self::Kms => Protocol::Json {
                target: "TrentService",
            },
        }
    }
}
