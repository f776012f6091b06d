"""The web dashboard: server-rendered pages, one deferred ES module, charts as Plotly figures."""
