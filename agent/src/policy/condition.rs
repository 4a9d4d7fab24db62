//! A policy taken apart, so that a denial can say which part failed.

use cedar_policy::{Entities, EvalResult, Expression, Policy, Request, eval_expression, pst};
use pst::{BinaryOp, Clause, Expr, Literal, UnaryOp, Var};

/// Scope and conditions of one policy, each to be evaluated on its own.
pub(super) struct Parts {
    pub(super) principal: Part,
    pub(super) action: Part,
    pub(super) resource: Part,
    /// In the order of the text; a later one may rely on an earlier one.
    pub(super) conditions: Vec<Part>,
    /// Whether a condition reads `context.host`.
    pub(super) speaks_of_host: bool,
    /// Whether a condition reads `context.source`.
    pub(super) speaks_of_source: bool,
    /// The login users that conditions compare with: worth trying in an explanation.
    pub(super) users: Vec<String>,
    /// The ports that conditions compare with.
    pub(super) ports: Vec<u16>,
}

/// One part as text and as an expression.
pub(super) struct Part {
    pub(super) text: String,
    /// It reads `context.port` or `context.host`.
    pub(super) reads_destination: bool,
    expression: Expression,
}

impl Parts {
    pub(super) fn of(policy: &Policy) -> Result<Self, String> {
        let pst = policy.to_pst().map_err(|e| e.to_string())?;
        let body = pst.body();
        let mut conjuncts = Vec::new();
        for clause in body.clauses() {
            match clause {
                Clause::When(expr) => split(expr, false, &mut conjuncts),
                Clause::Unless(expr) => split(expr, true, &mut conjuncts),
            }
        }
        let mut parts = Self {
            principal: Part::scope("principal", &body.principal.to_string())?,
            action: Part::scope("action", &body.action.to_string())?,
            resource: Part::scope("resource", &body.resource.to_string())?,
            conditions: Vec::new(),
            speaks_of_host: conjuncts.iter().any(|(expr, _)| mentions(expr, "host")),
            speaks_of_source: conjuncts.iter().any(|(expr, _)| mentions(expr, "source")),
            users: Vec::new(),
            ports: Vec::new(),
        };
        for (expr, negated) in conjuncts {
            parts.note_literals(expr);
            let mut part = if negated {
                Part::parse(format!("!({expr})"))?
            } else {
                Part::parse(expr.to_string())?
            };
            part.reads_destination = mentions(expr, "port") || mentions(expr, "host");
            parts.conditions.push(part);
        }
        Ok(parts)
    }

    fn note_literals(&mut self, expr: &Expr) {
        let strings = mentions(expr, "user");
        let numbers = mentions(expr, "port");
        if !strings && !numbers {
            return;
        }
        for literal in literals(expr) {
            match literal {
                Literal::String(text) if strings && self.users.len() < MAX_LITERALS => {
                    self.users.push(text.to_string());
                }
                Literal::Long(number) if numbers && self.ports.len() < MAX_LITERALS => {
                    self.ports.extend(u16::try_from(number));
                }
                _ => {}
            }
        }
    }
}

impl Part {
    /// A scope constraint; empty text is no constraint.
    fn scope(variable: &str, constraint: &str) -> Result<Self, String> {
        Self::parse(if constraint.is_empty() {
            "true".to_owned()
        } else {
            format!("{variable} {constraint}")
        })
    }

    fn parse(text: String) -> Result<Self, String> {
        let expression = text
            .parse()
            .map_err(|error| format!("the condition `{text}` cannot be taken apart: {error}"))?;
        Ok(Self {
            text,
            reads_destination: false,
            expression,
        })
    }

    /// Whether it holds; `None` when it cannot be told on its own (it relies on an earlier part,
    /// or fails to evaluate).
    pub(super) fn holds(&self, request: &Request, entities: &Entities) -> Option<bool> {
        match eval_expression(request, entities, &self.expression) {
            Ok(EvalResult::Bool(holds)) => Some(holds),
            _ => None,
        }
    }
}

/// Splits into what must all hold: `a && b`, and `!(a || b)`.
fn split<'a>(expr: &'a Expr, negated: bool, into: &mut Vec<(&'a Expr, bool)>) {
    match expr {
        Expr::UnaryOp {
            op: UnaryOp::Not,
            expr,
        } => split(expr, !negated, into),
        Expr::BinaryOp {
            op: BinaryOp::And,
            left,
            right,
        } if !negated => {
            split(left, false, into);
            split(right, false, into);
        }
        Expr::BinaryOp {
            op: BinaryOp::Or,
            left,
            right,
        } if negated => {
            split(left, true, into);
            split(right, true, into);
        }
        other => into.push((other, negated)),
    }
}

/// Whether `context.NAME` or `context has NAME` occurs.
fn mentions(expr: &Expr, name: &str) -> bool {
    let of_context = |expr: &Expr| matches!(expr, Expr::Var(Var::Context));
    expr.reduce(
        &|node| match node {
            Expr::GetAttr { expr, attr } if of_context(expr) && attr == name => Some(true),
            Expr::HasAttr { expr, attrs } if of_context(expr) && attrs.head == name => Some(true),
            _ => None,
        },
        &|a, b| a || b,
        false,
    )
}

fn literals(expr: &Expr) -> Vec<Literal> {
    expr.reduce(
        &|node| match node {
            Expr::Literal(literal) => Some(vec![literal.clone()]),
            _ => None,
        },
        &|mut a, mut b| {
            a.append(&mut b);
            a
        },
        Vec::new(),
    )
}

/// Literals kept of one policy: enough to suggest, bounded for odd policies.
const MAX_LITERALS: usize = 64;
