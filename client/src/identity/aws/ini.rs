//! The format of `~/.aws/config` and `~/.aws/credentials`, as botocore and the SDKs read it
//! (AWS SDKs reference guide, "Format of the configuration files").

use std::collections::BTreeMap;

use zeroize::Zeroizing;

/// Sections with their properties. A property with lines below it, each indented, holds them
/// all, one a line.
#[derive(Default)]
pub(super) struct Ini {
    sections: BTreeMap<String, Section>,
}

/// Properties by lower-case name. Values may be secrets.
pub(super) type Section = BTreeMap<String, Zeroizing<String>>;

impl Ini {
    /// Reads a file's text; an error is the number of the line that is neither section, property,
    /// continuation nor comment.
    pub(super) fn parse(text: &str) -> Result<Self, usize> {
        let mut ini = Self::default();
        let mut section: Option<String> = None;
        let mut property: Option<String> = None;
        for (index, line) in text.lines().enumerate() {
            let line = line.trim_start_matches('\u{feff}');
            let trimmed = line.trim();
            if trimmed.is_empty() || line.starts_with(['#', ';']) {
                continue;
            }
            let wrong = index + 1;
            if line.starts_with([' ', '\t']) {
                let (Some(section), Some(property)) = (&section, &property) else {
                    return Err(wrong);
                };
                let value = ini.property(section, property);
                value.push('\n');
                value.push_str(trimmed);
            } else if let Some(rest) = trimmed.strip_prefix('[') {
                let (name, _) = rest.split_once(']').ok_or(wrong)?;
                let name = section_name(name);
                ini.sections.entry(name.clone()).or_default();
                section = Some(name);
                property = None;
            } else {
                let (name, value) = trimmed.split_once('=').ok_or(wrong)?;
                let (name, section) = (name.trim().to_lowercase(), section.as_ref().ok_or(wrong)?);
                if name.is_empty() {
                    return Err(wrong);
                }
                let slot = ini.property(section, &name);
                *slot = Zeroizing::new(value.trim().to_owned());
                property = Some(name);
            }
        }
        Ok(ini)
    }

    /// The section of that name: `default`, `profile NAME`, `services NAME` in the configuration,
    /// `NAME` in the credentials.
    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.get(name)
    }

    fn property(&mut self, section: &str, name: &str) -> &mut Zeroizing<String> {
        self.sections
            .entry(section.to_owned())
            .or_default()
            .entry(name.to_owned())
            .or_default()
    }
}

/// A value without the comment behind it.
pub(super) fn without_comment(value: &str) -> &str {
    let end = [" #", " ;", "\t#", "\t;"]
        .iter()
        .filter_map(|mark| value.find(mark))
        .min()
        .unwrap_or(value.len());
    value.get(..end).unwrap_or(value).trim_end()
}

/// A property inside a property: `endpoint_url` below `sts =`.
pub(super) fn nested<'a>(value: &'a str, name: &str) -> Option<&'a str> {
    value.lines().skip(1).find_map(|line| {
        let (key, value) = line.split_once('=')?;
        key.trim()
            .eq_ignore_ascii_case(name)
            .then(|| without_comment(value.trim()))
    })
}

/// `profile  "my team"` is `profile my team`.
fn section_name(text: &str) -> String {
    let text = text.trim();
    match text.split_once(char::is_whitespace) {
        Some((kind, name)) => {
            let name = name.trim();
            let bare = name
                .strip_prefix(['"', '\''])
                .and_then(|name| name.strip_suffix(['"', '\'']))
                .unwrap_or(name);
            format!("{kind} {bare}")
        }
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_properties_comments_and_nesting_are_read() {
        let ini = Ini::parse(
            "# a comment\n[default]\nRegion = eu-west-1 # here\n\n; another\n[profile \"my team\"]\n\
             mfa_serial=arn:aws:iam::111122223333:mfa/a=b\n[services lab]\nsts =\n  \
             endpoint_url = https://sts.lab:4566\n  other = 1\nssm =\n  endpoint_url = https://x\n",
        )
        .ok()
        .unwrap();
        let default = ini.section("default").unwrap();
        assert_eq!(without_comment(&default["region"]), "eu-west-1");
        let team = ini.section("profile my team").unwrap();
        assert_eq!(
            team["mfa_serial"].as_str(),
            "arn:aws:iam::111122223333:mfa/a=b"
        );
        let services = ini.section("services lab").unwrap();
        assert_eq!(
            nested(&services["sts"], "endpoint_url"),
            Some("https://sts.lab:4566")
        );
        assert_eq!(nested(&services["sts"], "missing"), None);
    }

    #[test]
    fn a_line_that_is_nothing_is_named() {
        for (text, line) in [
            ("[default]\nregion\n", 2),
            ("region = x\n", 1),
            ("[default\n", 1),
            ("  indented = 1\n", 1),
            ("[default]\n= 1\n", 2),
        ] {
            assert_eq!(Ini::parse(text).err(), Some(line), "{text:?}");
        }
    }
}
