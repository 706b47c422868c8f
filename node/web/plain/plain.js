// The plain page: signs in, and shows the health every two seconds. Texts go in as text, never as markup.
"use strict";

const form = document.getElementById("sign-in");
const secret = document.getElementById("secret");
const said = document.getElementById("said");
const warnings = document.getElementById("warnings");
const table = document.getElementById("services");
const signOut = document.getElementById("sign-out");

function show(signedIn) {
  form.hidden = signedIn;
  table.hidden = !signedIn;
  signOut.hidden = !signedIn;
  if (!signedIn) warnings.replaceChildren();
}

function made(kind, text) {
  const element = document.createElement(kind);
  element.textContent = text;
  return element;
}

function span(seconds) {
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * length) return `${Math.round(seconds / length)} ${unit}`;
  }
  return `${Math.max(0, Math.round(seconds))} s`;
}

function list(health) {
  warnings.replaceChildren(...health.warnings.map((text) => made("li", text)));
  const rows = health.services.map((service) => {
    const row = document.createElement("tr");
    const texts = [service.name, service.state, span(health.time - service.since), service.reason, service.remedy];
    row.replaceChildren(...texts.map((text) => made("td", text)));
    return row;
  });
  table.tBodies[0].replaceChildren(...rows);
}

async function look() {
  try {
    const answer = await fetch("/api/v1/health");
    show(answer.ok || answer.status !== 401);
    if (answer.ok) {
      const health = await answer.json();
      list(health);
      said.textContent = health.healthy ? "All services are healthy." : "Something needs a look.";
    } else if (answer.status !== 401) {
      said.textContent = (await answer.json()).detail;
    }
  } catch {
    said.textContent = "The node does not answer.";
  }
  setTimeout(look, 2000);
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const word = secret.value.trim();
  secret.value = "";
  const kind = /^[A-Za-z0-9_-]{43}$/.test(word) ? "token" : "password";
  const answer = await fetch("/api/v1/session", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ [kind]: word }),
  });
  said.textContent = answer.ok ? "" : (await answer.json()).detail;
  if (answer.ok) show(true);
});

signOut.addEventListener("click", async () => {
  await fetch("/api/v1/session", { method: "DELETE" });
  show(false);
});

look();
