// Keeps a study page current while the study runs, copies snippets, checks a new study, and logs in from the fragment.
import { drawCharts, exploreCharts, redrawCharts, root } from "./charts.js";

const POLL_MS = 2000;
function logInFromFragment() {
  const form = document.getElementById("login");
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!form || !token) return;
  history.replaceState(null, "", location.pathname);
  form.elements.token.value = token;
  form.requestSubmit();
}

// A part is left alone while somebody reads in it: types, has focus, or has marked text.
function isInUse(part) {
  const marked = document.getSelection();
  return part.contains(document.activeElement) || part.querySelector("input[name=trial]:checked, input[name=study]:checked") ||
    (marked && !marked.isCollapsed && part.contains(marked.anchorNode));
}

async function refreshStudy(container) {
  const head = container.querySelector("[data-version]");
  const address = new URLSearchParams(location.search);
  address.set("version", head.dataset.version);
  const answer = await fetch(`${root}studies/${container.dataset.study}/body?${address}`);
  if (answer.status === 401) return location.assign(`${root}login`);
  if (answer.status !== 200) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of fresh.querySelectorAll("[data-part]")) {
    const old = container.querySelector(`[data-part="${part.dataset.part}"]`);
    if (!isInUse(old) || "version" in part.dataset) old.replaceWith(part);
  }
  const said = container.querySelector("[data-said]");
  const announce = document.getElementById("announce");
  if (said && announce && announce.textContent !== said.dataset.said) announce.textContent = said.dataset.said;
  await drawCharts();
}

async function refreshRunning(container) {
  const part = document.getElementById("running");
  const answer = await fetch(`${root}studies/${container.dataset.study}/running`);
  if (answer.status !== 200 || isInUse(part)) return;
  const text = await answer.text();
  if (part.shown !== text) part.innerHTML = text;
  part.shown = text;
}

async function followStudy(container) {
  await drawCharts();
  while (container.querySelector("[data-live]")) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    // A server that is away for a moment is asked again at the next turn.
    await refreshStudy(container).catch(() => {});
    await refreshRunning(container).catch(() => {});
  }
}

async function followStudies(container) {
  while (container.hasAttribute("data-refresh")) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    const answer = await fetch(location.href).catch(() => null);
    if (!answer?.ok) continue;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const fresh = page.getElementById("studies");
    if (!fresh) return;
    if (isInUse(container)) continue;
    container.innerHTML = fresh.innerHTML;
    await fillHeadlines();
    container.toggleAttribute("data-refresh", fresh.hasAttribute("data-refresh"));
  }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = document.getElementById(button.dataset.copy).textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // Without a secure context there is no clipboard; the text is marked for the reader to copy.
    document.getSelection().selectAllChildren(document.getElementById(button.dataset.copy));
  }
});

// The text of a new study is checked when one stops typing.
function followText(form) {
  const text = form.elements.text;
  const shown = document.getElementById("checked");
  let waiting = 0, asked = 0;
  const check = async () => {
    const mine = ++asked;
    shown.setAttribute("aria-busy", "true");
    const answer = await fetch(`${root}new/check`, { method: "POST", body: new URLSearchParams({ text: text.value }) })
      .catch(() => null);
    if (mine !== asked) return;
    shown.removeAttribute("aria-busy");
    if (answer?.ok) shown.innerHTML = await answer.text();
  };
  const later = () => { clearTimeout(waiting); waiting = setTimeout(check, 500); };
  text.addEventListener("input", later);
  text.addEventListener("dragover", (event) => event.preventDefault());
  text.addEventListener("drop", async (event) => {
    const [file] = event.dataTransfer.files;
    if (!file) return;
    event.preventDefault();
    text.value = await file.text();
    later();
  });
  shown.addEventListener("click", (event) => {
    const line = Number(event.target.dataset.line);
    if (!line) return;
    const lines = text.value.split("\n");
    const start = lines.slice(0, line - 1).join("\n").length + (line > 1);
    text.focus();
    text.setSelectionRange(start, start + lines[line - 1].length);
  });
  check();
}

// Best value and verdict of each study in the list, asked for once the list is shown.
async function fillHeadlines() {
  const rows = [...document.querySelectorAll("[data-headline]:not([data-filled])")];
  for (let k = 0; k < rows.length; k += 10) {
    const part = rows.slice(k, k + 10);
    const query = new URLSearchParams(part.map((row) => ["study", row.dataset.headline]));
    const answer = await fetch(`${root}headlines?${query}`).catch(() => null);
    if (!answer?.ok) return;
    const found = await answer.json();
    for (const row of part) {
      const [best, verdict] = found[row.dataset.headline] ?? ["", ""];
      row.querySelector("[data-best]").textContent = best;
      row.querySelector("[data-verdict]").textContent = verdict;
      row.dataset.filled = "";
    }
  }
}

// What a budget admits follows the form.
function followBudget(fields) {
  const shown = document.getElementById("foreseen");
  let waiting = 0, asked = 0;
  const show = async () => {
    const mine = ++asked;
    const query = new URLSearchParams(new FormData(fields));
    history.replaceState(null, "", `${location.pathname}?${query}`);
    shown.setAttribute("aria-busy", "true");
    const answer = await fetch(`${root}explore/shown?${query}`).catch(() => null);
    if (mine !== asked) return;
    shown.removeAttribute("aria-busy");
    if (answer?.ok) shown.innerHTML = await answer.text();
  };
  fields.addEventListener("input", () => {
    fields.querySelector("output").textContent = fields.elements.rank.value;
    clearTimeout(waiting);
    waiting = setTimeout(show, 400);
  });
}

// A confirmation before what cannot be undone.
document.addEventListener("submit", (event) => {
  const words = event.submitter?.dataset.confirm ?? event.target.dataset.confirm;
  if (words && !confirm(words)) event.preventDefault();
});

// The cookie lets the server send the page in its theme, so that nothing flashes.
function chooseTheme() {
  const button = document.getElementById("theme");
  if (!button) return;
  const page = document.documentElement;
  const tell = () => { button.textContent = `Theme: ${page.dataset.theme ?? "system"}`; };
  tell();
  button.addEventListener("click", async () => {
    const next = { system: "light", light: "dark", dark: "" }[page.dataset.theme ?? "system"];
    if (next) page.dataset.theme = next;
    else delete page.dataset.theme;
    document.cookie = `theme=${next};path=${root};max-age=${next ? 31536000 : 0};SameSite=Strict`;
    tell();
    await redrawCharts();
  });
}

chooseTheme();
logInFromFragment();
addEventListener("hashchange", logInFromFragment);
const written = document.getElementById("new");
const budget = document.getElementById("foresee");
if (budget) followBudget(budget);
if (written) followText(written);
exploreCharts();
const study = document.getElementById("study");
const studies = document.getElementById("studies");
if (study) followStudy(study);
else if (studies) { fillHeadlines(); followStudies(studies); }
else drawCharts();
