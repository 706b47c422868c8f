// Shows the description of the API, which this node gives itself; nothing is asked of any other host.
"use strict";

function made(kind, text, ...children) {
  const element = document.createElement(kind);
  if (text) element.textContent = text;
  element.append(...children);
  return element;
}

// A schema as people would write it down: names, kinds and meanings, a line each.
function lines(schema, all, depth = 0, seen = []) {
  if (!schema) return [];
  if (schema.$ref) {
    const name = schema.$ref.split("/").pop();
    return seen.includes(name) ? [] : lines(all[name], all, depth, [...seen, name]);
  }
  const choices = schema.anyOf || schema.oneOf;
  if (choices) return choices.flatMap((each) => lines(each, all, depth, seen));
  if (schema.items) return lines(schema.items, all, depth, seen);
  return Object.entries(schema.properties || {}).flatMap(([name, each]) => {
    const optional = (schema.required || []).includes(name) ? "" : "?";
    const meaning = each.description ? `  ${each.description}` : "";
    return [`${"  ".repeat(depth)}${name}${optional}: ${kind(each)}${meaning}`, ...lines(each, all, depth + 1, seen)];
  });
}

function kind(schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  const choices = schema.anyOf || schema.oneOf;
  if (choices) return choices.map(kind).join(" | ");
  if (schema.items) return `[${kind(schema.items)}]`;
  return [schema.type || "any"].flat().join(" | ");
}

function shown(title, content, all) {
  const [type, body] = Object.entries(content || {})[0] || [];
  if (!type) return [];
  const text = lines(body.schema, all).join("\n") || (body.schema ? kind(body.schema) : "");
  return [made("h3", `${title} (${type})`), ...(text ? [made("pre", text)] : [])];
}

function request(path, method, operation, all) {
  const section = made("section", "", made("h2", `${method.toUpperCase()} ${path}`));
  section.id = `${method}-${path}`;
  section.append(made("p", operation.description || operation.summary || ""));
  const parameters = operation.parameters || [];
  if (parameters.length) {
    const list = parameters.map((each) => {
      const what = `${each.name} (${each.in}${each.required ? "" : ", may be left out"}): ${kind(each.schema || {})}`;
      return made("li", each.description ? `${what}; ${each.description}` : what);
    });
    section.append(made("h3", "Parameters"), made("ul", "", ...list));
  }
  section.append(...shown("Body", operation.requestBody && operation.requestBody.content, all));
  for (const [status, answer] of Object.entries(operation.responses)) {
    if (status === "default") continue; // the same problem everywhere
    const title = `Answer ${status}`;
    const content = shown(title, answer.content, all);
    section.append(...(content.length ? content : [made("h3", title)]));
  }
  return section;
}

async function show() {
  const said = document.getElementById("said");
  const answer = await fetch("/api/v1/openapi.json");
  const description = await answer.json();
  if (!answer.ok) {
    said.replaceChildren(answer.status === 401 ? "Sign in first: " : description.detail, made("a", "the page"));
    said.querySelector("a").href = "/";
    return;
  }
  said.textContent = `${description.info.title} ${description.info.version}`;
  document.getElementById("about").textContent = description.info.description;
  const all = description.components.schemas;
  for (const [path, methods] of Object.entries(description.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const section = request(path, method, operation, all);
      const link = made("a", `${method.toUpperCase()} ${path}`);
      link.href = `#${encodeURIComponent(section.id)}`;
      link.addEventListener("click", (event) => {
        event.preventDefault();
        section.scrollIntoView();
      });
      document.getElementById("contents").append(made("li", "", link));
      document.getElementById("requests").append(section);
    }
  }
}

show().catch(() => {
  document.getElementById("said").textContent = "The node does not answer.";
});
