//! Messages of the service name REST routes and JSON fields. The command line and the page put their own words there.

const METHODS: [&str; 4] = ["GET ", "PUT ", "POST ", "DELETE "];

/// A text of a message, and what is said instead.
pub type Words = (&'static str, &'static str);

/// Returns a message with the words of `routes` in place of requests, and then those of `phrases` in place of other
/// texts. A request is a method and a path; each `{}` of a route stands for one segment of a path, and the first one is
/// inserted for `{}` in its words. A request that no route matches stays as it is.
pub fn translate(message: &str, routes: &[Words], phrases: &[Words]) -> String {
    let mut text = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(start) = METHODS.iter().filter_map(|method| rest.find(method)).min() {
        let (before, request) = rest.split_at(start);
        let (request, after) = request.split_at(request_length(request));
        text += before;
        text += &words(request, routes).unwrap_or_else(|| request.to_owned());
        rest = after;
    }
    text += rest;
    phrases.iter().fold(text, |text, (phrase, words)| text.replace(phrase, words))
}

/// The length of the method and path at the beginning of a text, in bytes. A placeholder such as `<its uuid>` may
/// contain spaces; punctuation after the path does not belong to it.
fn request_length(text: &str) -> usize {
    let path = text.find(' ').map_or(text.len(), |space| space + 1);
    let mut in_placeholder = false;
    let ends = |letter: char| {
        in_placeholder = letter == '<' || in_placeholder && letter != '>';
        letter.is_whitespace() && !in_placeholder
    };
    let end = text[path..].find(ends).map_or(text.len(), |end| path + end);
    text[..end].trim_end_matches([',', ';', ':', '.', ')']).len()
}

fn words(request: &str, routes: &[Words]) -> Option<String> {
    let (method, path) = request.split_once(' ')?;
    let request: Vec<_> = std::iter::once(method).chain(path.trim_start_matches('/').split('/')).collect();
    routes.iter().find_map(|(route, words)| {
        let route: Vec<_> = route.split([' ', '/']).collect();
        let matches = route.len() == request.len()
            && route.iter().zip(&request).all(|(wanted, segment)| *wanted == "{}" || wanted == segment);
        matches.then(|| {
            let id = route.iter().position(|segment| *segment == "{}").map_or("", |place| request[place]);
            words.replace("{}", id)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_phrases_get_other_words() {
        let routes = [("GET servers", "the list"), ("GET hosts/{}/devices", "the page of {}")];
        let said = |message| translate(message, &routes, &[("with force", "by force")]);
        assert_eq!(said("x; GET servers lists all"), "x; the list lists all");
        assert_eq!(said("see GET /hosts/a/devices, detach with force"), "see the page of a, detach by force");
        assert_eq!(said("GET hosts; GET "), "GET hosts; GET ");
    }
}
