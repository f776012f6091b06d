// Keeps a study page current while the study runs, draws its charts, copies snippets, and logs in from the fragment.
const POLL_MS = 2000;
// The proxy's prefix, with a slash at its end: this file lies in PREFIX/static/.
const root = new URL("..", import.meta.url).pathname;
// Nothing that is drawn may leave this host.
const CHART = { responsive: true, displaylogo: false, showSendToCloud: false, plotlyServerURL: "",
  modeBarButtonsToRemove: ["sendChartToCloud", "sendDataToCloud", "lasso2d", "select2d", "autoScale2d"] };

function logInFromFragment() {
  const form = document.getElementById("login");
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!form || !token) return;
  history.replaceState(null, "", location.pathname);
  form.elements.token.value = token;
  form.requestSubmit();
}

async function drawChart(element) {
  const answer = await fetch(element.dataset.chart);
  if (!answer.ok) return;
  const text = await answer.text();
  // What has not changed is not drawn again: hover and focus stay.
  if (element.drawn === text) return;
  const figure = JSON.parse(text);
  figure.layout.font.color = getComputedStyle(document.body).color;
  await Plotly.react(element, figure.data, figure.layout, CHART);
  element.drawn = text;
}

async function drawCharts() {
  for (const element of document.querySelectorAll("[data-chart]")) await drawChart(element);
}

// A part is left alone while somebody reads in it: types, has focus, or has marked text.
function isInUse(part) {
  const marked = document.getSelection();
  return part.contains(document.activeElement) ||
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
    container.innerHTML = fresh.innerHTML;
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

logInFromFragment();
const study = document.getElementById("study");
const studies = document.getElementById("studies");
if (study) followStudy(study);
else if (studies) followStudies(studies);
else drawCharts();
