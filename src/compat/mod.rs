//! Other systems' APIs as translations to tasks and back: values only. Each has its own words, error forms and languages; nothing
//! else in Faber knows them. `docs/compatibility-apis.md` says what is the same, what differs and what is not there.

pub mod fusion;
pub mod piston;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    /// The languages with their images that the document has below a heading.
    fn told(heading: &str) -> BTreeSet<(&'static str, &'static str)> {
        let text = include_str!("../../docs/compatibility-apis.md");
        let (_, section) = text.split_once(&format!("\n## {heading}\n")).unwrap();
        let rows =
            section.split("\n## ").next().unwrap().lines().skip_while(|line| !line.starts_with("| language | image"));
        let cells = rows.skip(2).take_while(|line| line.starts_with('|')).flat_map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            [(cells[1], cells[2]), (cells[4], cells[5])]
        });
        cells
            .filter(|(language, _)| !language.is_empty())
            .map(|(language, image)| (language.split('`').nth(1).unwrap(), image))
            .collect()
    }

    #[test]
    fn the_document_has_every_language() {
        let fusion = super::fusion::LANGUAGES.iter().filter_map(|(language, image)| Some((*language, (*image)?)));
        assert_eq!(told("SandboxFusion"), fusion.collect());
        let piston = super::piston::LANGUAGES.iter().map(|(language, image, _)| (*language, *image));
        assert_eq!(told("Piston, version 2"), piston.collect());
    }
}
