import './suite.js';
