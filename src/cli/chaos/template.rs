//! A command in which `{name}` stands for a member's name.

/// What is replaced.
const NAME: &str = "{name}";

/// Such a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(String);

impl Template {
    /// Of the text of an option.
    pub fn parse(text: &str) -> Result<Template, String> {
        match text.contains(NAME) {
            true => Ok(Template(text.to_string())),
            false => Err(format!(
                "{text:?} does not say where the member's name goes: write {NAME}"
            )),
        }
    }

    /// The command for a member. Its name comes from the cluster, and a shell reads it: it has to be a plain word.
    pub fn filled(&self, name: &str) -> Result<String, String> {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        match !name.is_empty() && !name.starts_with('-') && name.chars().all(is_plain) {
            true => Ok(self.0.replace(NAME, name)),
            false => Err(format!("the member's name {name:?} can't stand in a command")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_stands_wherever_it_is_asked_for() {
        let template = Template::parse("kill $(cat {name}.pid) # {name}").expect("a template");
        assert_eq!(
            template.filled("n-1.a").as_deref(),
            Ok("kill $(cat n-1.a.pid) # n-1.a")
        );
        assert!(Template::parse("reboot").is_err_and(|why| why.contains("{name}")));
    }

    #[test]
    fn a_name_is_no_command() {
        let template = Template::parse("stop {name}").expect("a template");
        for name in ["", "a b", "$(reboot)", "a;b", "-f", "a'b", "a\nb", "ä"] {
            assert!(template.filled(name).is_err(), "{name}");
        }
    }
}
