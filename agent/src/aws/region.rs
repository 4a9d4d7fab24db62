//! AWS regions and the DNS suffix of their endpoints.

/// Region prefixes by partition, with the suffix of endpoint names (botocore's partitions).
/// The isolated partitions come before the commercial `us-`.
const PARTITIONS: [(&[&str], &str); 4] = [
    (&["cn-"], "amazonaws.com.cn"),
    (&["us-iso-", "us-isob-", "eu-isoe-", "us-isof-"], ""),
    (&["eusc-"], "amazonaws.eu"),
    (
        &[
            "us-", "eu-", "ap-", "sa-", "ca-", "me-", "af-", "il-", "mx-",
        ],
        "amazonaws.com",
    ),
];

/// The suffix of endpoint names in `region`, or `None` when that is no region of a partition
/// that this agent knows.
pub fn region_suffix(region: &str) -> Option<&'static str> {
    let plain = region.len() <= 24
        && region
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    // `eu-west-1`: at least three parts, the last a number.
    let numbered = region.split('-').count() >= 3
        && region
            .rsplit('-')
            .next()
            .is_some_and(|last| last.len() <= 2 && last.parse::<u8>().is_ok());
    if !plain || !numbered {
        return None;
    }
    PARTITIONS
        .iter()
        .find(|(prefixes, _)| prefixes.iter().any(|prefix| region.starts_with(prefix)))
        .map(|(_, suffix)| *suffix)
        .filter(|suffix| !suffix.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_region_is_built_from_a_known_partition() {
        assert_eq!(region_suffix("eu-west-1"), Some("amazonaws.com"));
        assert_eq!(region_suffix("us-gov-west-1"), Some("amazonaws.com"));
        assert_eq!(region_suffix("ap-southeast-5"), Some("amazonaws.com"));
        assert_eq!(region_suffix("cn-north-1"), Some("amazonaws.com.cn"));
        assert_eq!(region_suffix("eusc-de-east-1"), Some("amazonaws.eu"));
        for bad in [
            "",
            "global",
            "aws-global",
            "eu-west",
            "eu-west-1.evil.example",
            "eu-west-1/",
            "EU-WEST-1",
            "us-iso-east-1",
            "xx-west-1",
        ] {
            assert_eq!(region_suffix(bad), None, "{bad}");
        }
    }
}
