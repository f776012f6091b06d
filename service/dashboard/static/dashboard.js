// Keeps a study page current while the study runs, draws its charts, and logs in from the address' fragment.
const POLL_MS = 2000;
// The proxy's prefix, with a slash at its end: this file lies in PREFIX/static/.
const root = new URL("..", import.meta.url).pathname;

function logInFromFragment() {
  const form = document.getElementById("login");
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!form || !token) return;
  history.replaceState(null, "", location.pathname);
  form.elements.token.value = token;
  form.requestSubmit();
}

async function drawCharts() {
  const ink = getComputedStyle(document.body).color;
  for (const element of document.querySelectorAll("[data-chart]")) {
    const answer = await fetch(element.dataset.chart);
    if (!answer.ok) continue;
    const figure = await answer.json();
    figure.layout.font.color = ink;
    await Plotly.react(element, figure.data, figure.layout, { responsive: true, displaylogo: false });
  }
}

async function refreshStudy(container) {
  const version = container.querySelector("[data-version]").dataset.version;
  const answer = await fetch(`${root}studies/${container.dataset.study}/body?version=${version}`);
  if (answer.status === 401) return location.assign(`${root}login`);
  if (answer.status !== 200) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const part of fresh.querySelectorAll("[data-part]")) {
    container.querySelector(`[data-part="${part.dataset.part}"]`).replaceWith(part);
  }
  await drawCharts();
}

async function followStudy(container) {
  await drawCharts();
  while (container.querySelector("[data-live]")) {
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    // A server that is away for a moment is asked again at the next turn.
    await refreshStudy(container).catch(() => {});
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

logInFromFragment();
const study = document.getElementById("study");
if (study) followStudy(study);
const studies = document.getElementById("studies");
if (studies) followStudies(studies);
