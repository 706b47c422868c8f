import "./app.css";
import { mount } from "svelte";
import App from "./App.svelte";
import { settings } from "./lib/state.svelte";

settings.apply();

const target = document.getElementById("app");
if (target === null) throw new Error("index.html has no #app");
export default mount(App, { target });
