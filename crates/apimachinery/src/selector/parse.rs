//! The grammar of label selectors in query strings. Errors are worded as `labels.Parse` words them.

use super::{Operator, Requirement, SelectorError};
use crate::field_error::FieldError;
use crate::validation;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Token {
    Bad,
    End,
    Close,
    Open,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    NotEquals,
    Greater,
    Less,
    In,
    NotIn,
    Identifier,
}

const SYMBOLS: &str = "=!(),><";
const SPACES: &str = " \t\r\n";

struct Parser<'a> {
    tokens: Vec<(Token, &'a str)>,
    position: usize,
}

pub(super) fn requirements(text: &str) -> Result<Vec<Requirement>, SelectorError> {
    let mut parser = Parser { tokens: scan(text), position: 0 };
    let mut found = Vec::new();
    loop {
        match parser.peek() {
            (Token::Identifier | Token::Not, _) => {}
            (Token::End, _) => return Ok(found),
            (_, literal) => {
                return fail(format!("found '{literal}', expected: !, identifier, or 'end of string'"));
            }
        }
        let requirement = parser.requirement();
        found.push(requirement.map_err(|e| SelectorError(format!("unable to parse requirement: {e}")))?);
        match parser.next() {
            (Token::End, _) => return Ok(found),
            (Token::Comma, _) => {
                let (token, literal) = parser.peek();
                if token != Token::Identifier && token != Token::Not {
                    return fail(format!("found '{literal}', expected: identifier after ','"));
                }
            }
            (_, literal) => return fail(format!("found '{literal}', expected: ',' or 'end of string'")),
        }
    }
}

impl<'a> Parser<'a> {
    fn at(&self, position: usize) -> (Token, &'a str) {
        self.tokens.get(position).copied().unwrap_or((Token::End, ""))
    }

    /// The next token where a key or a value is meant: `in` and `notin` are plain words there.
    fn peek(&self) -> (Token, &'a str) {
        match self.at(self.position) {
            (Token::In | Token::NotIn, literal) => (Token::Identifier, literal),
            other => other,
        }
    }

    fn next(&mut self) -> (Token, &'a str) {
        let token = self.peek();
        self.position += 1;
        token
    }

    fn requirement(&mut self) -> Result<Requirement, SelectorError> {
        let (mut token, mut literal) = self.next();
        let negated = token == Token::Not;
        if negated {
            (token, literal) = self.next();
        }
        if token != Token::Identifier {
            return fail(format!("found '{literal}', expected: identifier"));
        }
        let wrong = validation::qualified_name(literal);
        if !wrong.is_empty() {
            // there is no field behind a query string; the API server prints its nil path like this
            return Err(said(FieldError::invalid("<nil>", literal, wrong.join("; "))));
        }
        let key = literal;
        let operator = match self.peek().0 {
            _ if negated => Operator::DoesNotExist,
            Token::End | Token::Comma => Operator::Exists,
            _ => self.operator()?,
        };
        let values = match operator {
            Operator::Exists | Operator::DoesNotExist => Vec::new(),
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?.to_owned()],
        };
        Requirement::new(key, operator, values, None).map_err(said)
    }

    fn operator(&mut self) -> Result<Operator, SelectorError> {
        let (token, literal) = self.at(self.position);
        self.position += 1;
        Ok(match token {
            Token::In => Operator::In,
            Token::NotIn => Operator::NotIn,
            Token::Equals => Operator::Equals,
            Token::DoubleEquals => Operator::DoubleEquals,
            Token::NotEquals => Operator::NotEquals,
            Token::Greater => Operator::GreaterThan,
            Token::Less => Operator::LessThan,
            _ => return fail(format!("found '{literal}', expected: in, notin, =, ==, !=, gt, lt")),
        })
    }

    fn values(&mut self) -> Result<Vec<String>, SelectorError> {
        let (token, literal) = self.next();
        if token != Token::Open {
            return fail(format!("found '{literal}' expected: '('"));
        }
        let mut values = Vec::new();
        // between commas a missing word is the empty value: `(,a)`, `(a,)`, `()`
        let mut word: Option<&str> = None;
        loop {
            match self.next() {
                (Token::Identifier, literal) if word.is_none() => word = Some(literal),
                (Token::Comma, _) => values.push(word.take().unwrap_or_default().to_owned()),
                (Token::Close, _) => {
                    values.push(word.unwrap_or_default().to_owned());
                    return Ok(values);
                }
                (_, literal) if word.is_some() => {
                    return fail(format!("found '{literal}', expected: ',' or ')'"));
                }
                (_, literal) if values.is_empty() => {
                    return fail(format!("found '{literal}', expected: ',', ')' or identifier"));
                }
                (_, literal) => return fail(format!("found '{literal}', expected: ',', or identifier")),
            }
        }
    }

    fn exact_value(&mut self) -> Result<&'a str, SelectorError> {
        match self.peek() {
            (Token::End | Token::Comma, _) => Ok(""),
            (Token::Identifier, literal) => {
                self.position += 1;
                Ok(literal)
            }
            (_, literal) => fail(format!("found '{literal}', expected: identifier")),
        }
    }
}

fn fail<T>(message: String) -> Result<T, SelectorError> {
    Err(SelectorError(message))
}

#[expect(clippy::needless_pass_by_value, reason = "used as a function in map_err")]
fn said(error: FieldError) -> SelectorError {
    SelectorError(error.to_string())
}

fn scan(text: &str) -> Vec<(Token, &str)> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(|c| SPACES.contains(c));
    while !rest.is_empty() {
        let symbol = rest.starts_with(|c| SYMBOLS.contains(c));
        let (token, length) = if symbol { scan_symbol(rest) } else { scan_word(rest) };
        let (literal, after) = rest.split_at(length);
        tokens.push((token, literal));
        rest = after.trim_start_matches(|c| SPACES.contains(c));
    }
    tokens
}

fn scan_word(text: &str) -> (Token, usize) {
    let length = text.find(|c| SYMBOLS.contains(c) || SPACES.contains(c)).unwrap_or(text.len());
    let token = match &text[..length] {
        "in" => Token::In,
        "notin" => Token::NotIn,
        _ => Token::Identifier,
    };
    (token, length)
}

fn scan_symbol(text: &str) -> (Token, usize) {
    let two = match text.get(..2) {
        Some("==") => Some(Token::DoubleEquals),
        Some("!=") => Some(Token::NotEquals),
        _ => None,
    };
    if let Some(token) = two {
        return (token, 2);
    }
    let token = match text.as_bytes().first() {
        Some(b'=') => Token::Equals,
        Some(b'!') => Token::Not,
        Some(b'(') => Token::Open,
        Some(b')') => Token::Close,
        Some(b',') => Token::Comma,
        Some(b'>') => Token::Greater,
        Some(b'<') => Token::Less,
        _ => Token::Bad,
    };
    (token, 1)
}
