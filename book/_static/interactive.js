// Draws the figures that a page holds as data; without any, nothing is loaded.
(() => {
  const folder = document.currentScript.src.replace(/[^/]*$/, "");
  const colours = () => {
    const ink = getComputedStyle(document.body).color;
    return { "font.color": ink, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
  };
  const load = () =>
    new Promise((resolve, reject) => {
      const script = document.createElement("script");
      Object.assign(script, { src: `${folder}plotly.min.js`, onload: resolve, onerror: reject });
      document.head.append(script);
    });
  const draw = async () => {
    const places = [...document.querySelectorAll("div.interactive")];
    if (!places.length) return;
    await load();
    for (const place of places) {
      const { data, layout, frames } = JSON.parse(place.querySelector("script").textContent);
      await Plotly.newPlot(place, data, layout, { responsive: true, displaylogo: false });
      if (frames) await Plotly.addFrames(place, frames);
      await Plotly.relayout(place, colours());
      place.dataset.drawn = "";
    }
    new MutationObserver(() => places.forEach((place) => Plotly.relayout(place, colours()))).observe(
      document.documentElement, { attributeFilter: ["data-theme"] });
  };
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", draw);
  else draw();
})();
