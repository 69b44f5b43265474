//! Upper bounds for what an expression may take, before it is parsed and before it is run.

use kube_cel::cel;
use kube_cel::cel::IdedExpr;
use kube_cel::cel::common::ast::{EntryExpr, Expr};

use super::{EXPRESSION_MAX, NESTING_MAX, TREE_MAX};

/// Refuses what would make the parser or the evaluation recurse too deep.
pub(super) fn check_source(source: &str) -> Result<(), String> {
    if source.len() > EXPRESSION_MAX {
        return Err(format!("expression is longer than {EXPRESSION_MAX} bytes"));
    }
    let mut depth = 0_usize;
    let mut quote: Option<char> = None;
    let mut escaped = false;
    for c in source.chars() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), c) if open == c => quote = None,
            (None, '"' | '\'') => quote = Some(c),
            (None, '(' | '[' | '{') => depth += 1,
            (None, ')' | ']' | '}') => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > NESTING_MAX {
            return Err(format!("expression is nested deeper than {NESTING_MAX} brackets"));
        }
    }
    Ok(())
}

/// What an expression's cost depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    nodes: u64,
    /// loops inside of loops
    loops: u32,
    /// makes lists out of strings
    splits: bool,
    /// levels of the tree
    pub(super) depth: usize,
}

impl Shape {
    /// Measures a tree, or refuses one that is too deep to evaluate.
    pub(super) fn of(tree: &IdedExpr) -> Result<Self, String> {
        let depth = depth_of(tree);
        if depth > TREE_MAX {
            return Err(format!("expression is nested deeper than {TREE_MAX} operations"));
        }
        let (nodes, loops) = walk(tree);
        let references = tree.references();
        let splits = ["split", "findAll", "format"].iter().any(|name| references.has_function(name));
        Ok(Self { nodes, loops, splits, depth })
    }

    /// Steps at most, over lists of `largest` items and strings of `longest` bytes.
    pub(super) fn cost(self, largest: usize, longest: usize) -> u64 {
        let items = if self.splits { largest.max(longest) } else { largest };
        (items as u64).max(1).saturating_pow(self.loops).saturating_mul(self.nodes)
    }
}

/// How deep a tree is. Does not recurse.
fn depth_of(tree: &IdedExpr) -> usize {
    let mut deepest = 0;
    let mut stack = vec![(tree, 1)];
    while let Some((node, depth)) = stack.pop() {
        deepest = deepest.max(depth);
        stack.extend(children(node).into_iter().map(|child| (child, depth + 1)));
    }
    deepest
}

/// The parts of a node.
pub(super) fn children(node: &IdedExpr) -> Vec<&IdedExpr> {
    match &node.expr {
        Expr::Unspecified | Expr::Ident(_) | Expr::Literal(_) => Vec::new(),
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).collect(),
        Expr::List(list) => list.elements.iter().collect(),
        Expr::Select(select) => vec![&select.operand],
        Expr::Map(map) => entries(&map.entries),
        Expr::Struct(object) => entries(&object.entries),
        Expr::Comprehension(each) => {
            vec![&each.iter_range, &each.accu_init, &each.loop_cond, &each.loop_step, &each.result]
        }
    }
}

/// Nodes of a tree, and how deep its loops are nested.
fn walk(node: &IdedExpr) -> (u64, u32) {
    let parts = children(node);
    if let (Expr::Comprehension(_), [range, body @ ..]) = (&node.expr, parts.as_slice()) {
        let (range_nodes, range_loops) = walk(range);
        let (nodes, loops) = sum(body.iter().copied());
        return (nodes + range_nodes + 1, range_loops.max(loops + 1));
    }
    let (nodes, loops) = sum(parts.into_iter());
    (nodes + 1, loops)
}

fn sum<'a>(parts: impl Iterator<Item = &'a IdedExpr>) -> (u64, u32) {
    parts.map(walk).fold((0, 0), |(nodes, loops), (n, l)| (nodes + n, loops.max(l)))
}

fn entries(entries: &[cel::common::ast::IdedEntryExpr]) -> Vec<&IdedExpr> {
    let parts = entries.iter().flat_map(|entry| match &entry.expr {
        EntryExpr::StructField(field) => vec![&field.value],
        EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
    });
    parts.collect()
}
